package org.apache.toree.elastic

import java.io.OutputStream
import java.nio.charset.StandardCharsets.UTF_8
import java.util.concurrent.TimeUnit

import org.apache.toree.utils.LogLike
import play.api.libs.json.Json

import scala.io.Source

/** Why a job waits for executors, said in the cell that waits. The launcher knows: it asks the cluster when it is told of a wait.
  *
  * What may pass is a line on the cell's stderr; what cannot, such as an image that cannot be pulled, ends the job with that sentence.
  */
final class Waits(spark: Spark, requests: Requests, streams: Streams, launcher: OutputStream) extends LogLike {
  @volatile private var said = ""

  def start(): Unit = {
    begin("waits")(while (true) {
      TimeUnit.SECONDS.sleep(Waits.Seconds)
      val waiting = if (requests.isRunning) spark.waiting else None
      if (waiting.isEmpty) said = ""
      waiting.foreach(application => launcher.write(s"$application\n".getBytes(UTF_8)))
    })
    begin("reasons")(Source.fromInputStream(streams.ofLauncher, "UTF-8").getLines.foreach { line =>
      val answer = Json.parse(line)
      val why = (answer \ "why").as[String]
      if ((answer \ "hopeless").as[Boolean]) spark.cancelAll(s"its executors cannot start: $why")
      else if (why != said) streams.say(s"Spark waits for executors: $why\n")
      said = why
    })
  }

  private def begin(name: String)(body: => Unit): Unit = {
    val thread = new Thread(() =>
      try body
      catch { case thrown: Throwable => logger.warn("Executors are not watched any more", thrown) }, name)
    thread.setDaemon(true)
    thread.start()
  }
}

object Waits {
  private val Seconds = 2L
}
