package org.apache.toree.elastic

import java.io.{ByteArrayOutputStream, PrintStream}

import org.apache.spark.sql.{DataFrame, Dataset}
import org.apache.toree.kernel.protocol.v5.MIMEType
import org.apache.toree.magic.{CellMagic, LineMagic, Magic, MagicOutput}
import org.apache.toree.plugins.Implicits._
import org.apache.toree.plugins.{NewOutputStream, PluginManager}
import org.apache.toree.utils.DataFrameConverter

import scala.tools.nsc.interpreter.CodeState

/** Runs a cell's magics, each of them once, and between them its Scala code; what a magic throws is the cell's failure. */
final class Magics(plugins: PluginManager, interpreter: CellInterpreter, spark: Spark, output: PrintStream) {
  /** Runs a cell and returns what it displays. */
  def evaluate(code: String, cell: Int, silent: Boolean): Map[String, String] = {
    val label = s"cell-$cell"
    code match {
      case Magics.CellLine(name, rest) => cellMagic(name.toLowerCase, rest.trim, label, silent)
      case _ if !Magics.LineStart.findFirstIn(code).isDefined => interpreter.evaluate(code, label, silent)
      case _ =>
        val results = parts(code).zipWithIndex.map {
          case (Left((name, arguments)), _) => lineMagic(name, arguments)
          case (Right(plain), index)        => interpreter.evaluate(plain, label + "bcdefghijklmnopqrstuvwxyz".take(index), silent)
        }
        results.filter(_.nonEmpty).toSeq.lastOption.getOrElse(Map.empty)
    }
  }

  /** The parts of a cell: a magic where a line begins with % and the code before it is complete; Scala, with its line numbers, else. */
  private def parts(code: String): Iterator[Either[(String, String), String]] = {
    val lines = code.split("\n", -1).toIndexedSeq
    def next(begin: Int): Stream[Either[(String, String), String]] =
      if (begin >= lines.size) Stream.empty
      else lines(begin) match {
        case Magics.Line(name, arguments) => Left((name, arguments.trim)) #:: next(begin + 1)
        case _ =>
          def isWhole(end: Int): Boolean = interpreter.parsed(lines.slice(begin, end).mkString("\n")) != CodeState.Incomplete
          val magics = (begin + 1 until lines.size).filter(index => Magics.Line.findFirstIn(lines(index)).isDefined)
          val end = magics.find(isWhole).getOrElse(lines.size)
          // empty lines in place of those before keep the numbers
          Right("\n" * begin + lines.slice(begin, end).mkString("\n")) #:: next(end)
      }
    next(0).iterator
  }

  private def cellMagic(name: String, code: String, label: String, silent: Boolean): Map[String, String] = name match {
    case "scala"     => interpreter.evaluate(code, label, silent)
    case "sql"       => Cell.userCode(sql(code))
    case "dataframe" => dataFrame(code, label)
    case _ =>
      find(name) match {
        case Some(magic: CellMagic) => Cell.userCode(execute(magic, code))
        case _                      => throw unknown("%%" + name, Magics.OwnCells ++ names(classOf[CellMagic]).map("%%" + _))
      }
  }

  private def lineMagic(name: String, arguments: String): Map[String, String] = name.toLowerCase match {
    case "lsmagic" =>
      output.println((names(classOf[LineMagic]).map("%" + _) ++ Magics.OwnCells ++ names(classOf[CellMagic]).map("%%" + _)).mkString(" "))
      Map.empty
    case _ =>
      find(name) match {
        case Some(magic: LineMagic) => Cell.userCode(execute(magic, arguments))
        case _                      => throw unknown("%" + name, names(classOf[LineMagic]).map("%" + _))
      }
  }

  private def execute(magic: Magic, code: String): Map[String, String] = {
    plugins.fireEvent(NewOutputStream, "outputStream" -> output)
    magic.execute(code) match {
      case shown: MagicOutput => shown.asMap
      case shown: Map[_, _]   => shown.map { case (kind, text) => kind.toString -> text.toString }
      case _                  => Map.empty
    }
  }

  /** Spark SQL, with the values of Scala's variables where it says ${name}. */
  private def sql(code: String): Map[String, String] = {
    val text = if (code.contains("$")) interpolated(code) else code
    val frame = spark.session().sql(text)
    if (frame.columns.isEmpty) Map.empty else Map(MIMEType.PlainText -> shown(frame))
  }

  private def interpolated(code: String): String =
    try {
      interpreter.evaluate("val sqlText__ : String = s\"\"\"" + code + "\"\"\"", "<sql>", silent = true)
      interpreter.read("sqlText__").fold(code)(_.toString)
    } catch {
      // a $ that is SQL's own
      case error: CellError if error.name != "SparkNotAvailable" => code
    }

  private def shown(frame: DataFrame): String = {
    val bytes = new ByteArrayOutputStream
    Console.withOut(new PrintStream(bytes, true, "UTF-8"))(frame.show(10))
    bytes.toString("UTF-8")
  }

  private def dataFrame(code: String, label: String): Map[String, String] = {
    val (options, lines) = code.split("\n").toSeq.span(_.startsWith("--"))
    val chosen = options.flatMap(_.split("\\s+")).map {
      case Magics.Option(name, value) => name -> value
      case other                      => throw new CellError("MagicError", s"%%dataframe takes ${Magics.Options}, not $other")
    }.toMap
    val kind = chosen.getOrElse("output", "html")
    if (lines.forall(_.trim.isEmpty)) throw new CellError("MagicError", "after %%dataframe comes code whose last line is a DataFrame")
    interpreter.evaluate("val dataFrame__ = {\n" + lines.mkString("\n") + "\n}", label, silent = true)
    interpreter.read("dataFrame__") match {
      case Some(frame: Dataset[_]) =>
        val mime = Map("html" -> MIMEType.TextHtml, "json" -> MIMEType.ApplicationJson).getOrElse(kind, MIMEType.PlainText)
        Cell.userCode(Map(mime -> new DataFrameConverter().convert(frame.toDF, kind, chosen.getOrElse("limit", "10").toInt).get))
      case other =>
        val what = other.flatMap(Option(_)).fold("nothing")(value => s"a ${value.getClass.getName}")
        throw new CellError("MagicError", s"the last line after %%dataframe is no DataFrame but $what")
    }
  }

  private def find(name: String): Option[Magic] = plugins.plugins.collectFirst {
    case magic: Magic if magic.getClass.getSimpleName.equalsIgnoreCase(name) => magic
  }

  private def names(kind: Class[_ <: Magic]): Seq[String] =
    plugins.plugins.filter(kind.isInstance).map(_.getClass.getSimpleName.toLowerCase).toSeq.sorted

  private def unknown(name: String, known: Seq[String]): CellError =
    new CellError("MagicNotFound", s"There is no magic $name here; there are ${known.mkString(", ")}")
}

object Magics {
  private val CellLine = """(?s)\s*%%(\w*)(.*)""".r
  private val Line = """^%(?!%)(\w+)(.*)$""".r
  private val LineStart = """(?m)^%(?!%)\w""".r
  private val Option = """--(output|limit)[= ](\w+)""".r
  private val Options = "--output=html|csv|json and --limit=NUMBER"
  private val OwnCells = Seq("%%scala", "%%sql", "%%dataframe")
}
