package org.apache.toree.elastic

import org.apache.spark.SparkContext
import org.apache.spark.sql.{SQLContext, SQLImplicits, SparkSession}
import org.apache.toree.kernel.api.Kernel

/** What cells find without a Spark session. It is here, and not in code that each start compiles, because that takes a second. */
object Predefined extends WithKernel {
  private[elastic] val Imports = s"import ${pathOf(this)}._"
  private[elastic] def pathOf(predefined: AnyRef): String = predefined.getClass.getName.stripSuffix("$")
}

/** What cells find with one: also Spark's implicits. */
object PredefinedWithSpark extends SQLImplicits with WithKernel {
  private[elastic] val Imports =
    s"""import org.apache.spark.SparkContext._
       |import org.apache.spark.sql.{SQLContext, SQLImplicits, SparkSession}
       |import ${Predefined.pathOf(this)}._""".stripMargin

  /** Spark makes a Dataset's rows objects of the cell's classes with what is around these, which it would find only once the cell is over. */
  private[elastic] val First = "_root_.org.apache.spark.sql.catalyst.encoders.OuterScopes.addOuterScope(this)"

  def spark: SparkSession = kernel.sparkSession
  def sc: SparkContext = kernel.sparkContext
  lazy val implicits: SQLImplicits = this
  protected override def _sqlContext: SQLContext = spark.sqlContext
}

trait WithKernel {
  implicit lazy val kernel: Kernel = CellInterpreter.kernel
}
