package org.apache.toree.elastic

import org.apache.toree.kernel.protocol.v5.{HeaderBuilder, KMBuilder}
import play.api.libs.json.Json

/** What a kernel does in its first minutes, done while the image is built, so that the JVM can archive the classes that it takes. */
object Rehearsal {
  private val Cells = Seq(
    "1 + 1",
    "println(1); val x = 3\ncase class Point(x: Int, y: Int)\nx * 2",
    "nope",
    "throw new RuntimeException",
    "spark.range(10).count()",
    "Seq(Point(1, 2)).toDF.groupBy(\"x\").count().show()",
    "sc.parallelize(1 to 4).map(_ + x).collect()",
    "%%sql\nselect 1"
  )

  def main(requests: Requests): Unit = {
    def ask(kind: String, content: (String, Json.JsValueWrapper)*): Unit =
      requests.handle(KMBuilder().withHeader(HeaderBuilder.create(kind)).withContentString(Json.stringify(Json.obj(content: _*))).build)
    Cells.foreach(code => ask("execute_request", "code" -> code))
    Seq("complete_request", "inspect_request", "is_complete_request").foreach(ask(_, "code" -> "x.toS", "cursor_pos" -> 5))
    System.exit(0)
  }
}
