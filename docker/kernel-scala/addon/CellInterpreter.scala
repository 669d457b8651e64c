package org.apache.toree.elastic

import java.net.URL
import java.util.concurrent.ConcurrentHashMap

import com.typesafe.config.Config
import jupyter.Displayers
import org.apache.toree.interpreter.{ExecuteError, ExecuteFailure, ExecuteOutput, Interpreter, Results}
import org.apache.toree.kernel.api.{Kernel, KernelOptions}
import org.apache.toree.kernel.interpreter.scala.ScalaInterpreter
import org.apache.toree.kernel.protocol.v5.MIMEType

import scala.collection.JavaConverters._
import scala.tools.nsc.Settings
import scala.tools.nsc.interpreter.{Results => _, _}
import scala.util.matching.Regex

/** Toree's Scala interpreter, where every failure is an exception: of the cell's code as it was thrown, of anything else a CellError. */
class CellInterpreter(config: Config) extends ScalaInterpreter(config) {
  import CellInterpreter._

  private val linesOf = new ConcurrentHashMap[String, CellLines]
  private val hasSpark = config.getString("spark_context_initialization_mode") != "none"
  private def compiler: CellCompiler = iMain.asInstanceOf[CellCompiler]

  // what SparkSubmit adds (spark.jars, spark.jars.packages) is in the loader that it sets, not in the one of this class
  override def _runtimeClassloader: ClassLoader = Option(Thread.currentThread.getContextClassLoader).getOrElse(getClass.getClassLoader)
  override def buildClasspath(ignored: ClassLoader): String = super.buildClasspath(_runtimeClassloader)

  override protected def newIMain(settings: Settings, out: JPrintWriter): IMain = {
    val compiler = new CellCompiler(settings, out)
    compiler.initializeSynchronous()
    compiler
  }

  override def start(): Interpreter = {
    iMain = newIMain(settings, new JPrintWriter(lastResultOut, true))
    this
  }

  /** Has cells find what is predefined. */
  override protected def bindVariables(): Unit = {
    CellInterpreter.kernel = kernel.asInstanceOf[Kernel]
    // errors of the code before would count as errors of this
    compiler.reporter.reset()
    val result = compiler.beQuietDuring(compiler.interpret(if (hasSpark) PredefinedWithSpark.Imports else Predefined.Imports))
    if (result != IR.Success) throw new IllegalStateException(s"The kernel's own code fails: $lastResultOut")
    lastResultOut.reset()
  }

  /** Toree's gives every value of the user's a new definition, too, which takes a second each and is not needed any more. */
  override def addJars(jars: URL*): Unit = {
    compiler.addUrlsToClassPath(jars: _*)
    bindVariables()
  }

  def classLoaderOfCells: ClassLoader = compiler.classLoader

  /** Runs code and returns what its last expression displays. Throws what the code throws, and CellError for all else that fails. */
  def evaluate(code: String, label: String, silent: Boolean): Map[String, String] = {
    lastResultOut.reset()
    compile(code, label).fold(Map.empty[String, String]) { prepared =>
      val warnings = printed()
      if (warnings.nonEmpty && !silent) Console.err.println(located(warnings))
      val text = Cell.userCode(prepared.run()).fold(throw _, identity)
      prepared.keep()
      if (silent) Map.empty else Cell.userCode(display(text, prepared.resultName))
    }
  }

  private def compile(code: String, label: String): Option[PreparedCode] =
    try {
      compiler.parsed(code) match {
        case CodeState.Empty      => None
        case CodeState.Incomplete => throw new CellError("SyntaxError", EndsTooEarly)
        case _ =>
          val first = if (hasSpark) PredefinedWithSpark.First else ""
          val prepared = compiler.prepared(code, label, first).getOrElse(throw compileError("SyntaxError"))
          val isCompiled = prepared.isCompiled
          linesOf.put(label, prepared.lines)
          if (!isCompiled) throw compileError("CompileError")
          Some(prepared)
      }
    } catch {
      case error: CellError => throw error
      case _: StackOverflowError =>
        throw new CellError("CompilerCrash", "Scala's compiler ran out of stack: the code is nested too deeply.")
      case thrown: Throwable =>
        val failure = Failure.of(thrown)
        val sentence = s"Scala's compiler failed: ${failure.message} (${failure.name})"
        throw new CellError("CompilerCrash", sentence, printedLines() ++ failure.traceback)
    }

  private def printed(): String = {
    val text = lastResultOut.toString("UTF-8")
    lastResultOut.reset()
    text.stripSuffix("\n")
  }

  private def printedLines(): Seq[String] = located(printed()).split("\n").toSeq.filter(_.nonEmpty)

  private def compileError(name: String): CellError = {
    val lines = printedLines()
    val first = lines.collectFirst { case ErrorLine(where, message) => s"$message ($where)" }
    new CellError(name, first.getOrElse("The code does not compile."), lines)
  }

  /** Text with the places of compiled code turned into places in cells. */
  def located(text: String): String = Place.replaceAllIn(text, found => Regex.quoteReplacement {
    val line = Option(linesOf.get(found.group(1))).fold(found.group(3).toInt)(_.lineInCell(found.group(3).toInt))
    s"cell ${found.group(2)}:$line"
  })

  private def display(text: String, result: Option[String]): Map[String, String] = {
    val start = result.map(name => if (text.startsWith(s"$name: ")) 0 else text.indexOf(s"\n$name: ") + 1)
      .filter(at => result.exists(name => text.startsWith(s"$name: ", at)))
    val definitions = start.fold(text)(text.take).split("\n").filterNot(_.startsWith("import ")).mkString("\n").trim
    if (definitions.nonEmpty && KernelOptions.showOutput) {
      val shown = if (KernelOptions.showTypes) definitions else TypeOfDefinition.replaceAllIn(definitions, "$1 = ")
      kernel.display.content(MIMEType.PlainText, shown)
    }
    start.map(text.drop).collect { case Result(name, typeName, value) =>
      if (typeName == classOf[org.apache.toree.magic.MagicOutput].getName || KernelOptions.noTruncation)
        Displayers.display(read(name).orNull).asScala.toMap
      else {
        val shown = if (value.length > MaxResult) value.take(MaxResult) + "..." else value
        Map(MIMEType.PlainText -> (if (KernelOptions.showTypes) s"$typeName = $shown" else shown))
      }
    }.getOrElse(Map.empty)
  }

  /** For Toree's own callers. */
  override def interpret(
    code: String,
    silent: Boolean,
    output: Option[OutputStream]
  ): (Results.Result, Either[ExecuteOutput, ExecuteFailure]) =
    try Results.Success -> Left(evaluate(code, "<kernel>", silent))
    catch {
      case thrown: Throwable =>
        val failure = Failure.of(thrown)
        Results.Error -> Right(ExecuteError(failure.name, failure.message, failure.traceback.toList))
    }

  override def interrupt(): Interpreter = this

  override def completion(code: String, position: Int): (Int, List[String]) = {
    val found = new PresentationCompilerCompleter(compiler).complete(code, position)
    (found.cursor, found.candidates)
  }

  override def isComplete(code: String): (String, String) =
    if (compiler.parsed(code) == CodeState.Empty) ("complete", "") else super.isComplete(code)

  def parsed(code: String): CodeState = compiler.parsed(code)

  /** The type of the expression that ends at a place in code, or None. */
  def inspect(code: String, position: Int): Option[String] = {
    val end = position + code.drop(position).takeWhile(isName).length
    val path = code.take(end).reverse.takeWhile(char => isName(char) || char == '.').reverse.dropWhile(_ == '.')
    if (path.isEmpty || path.head.isDigit) None
    else {
      val found = compiler.typeOf(path)
      lastResultOut.reset()
      found.map(name => s"$path: ${Failure.readable(name)}")
    }
  }
}

object CellInterpreter {
  /** Where the code of cells finds the kernel. */
  @volatile var kernel: Kernel = _

  private val MaxResult = 20000
  private val EndsTooEarly = "The code ends too early: a bracket, a quote or an expression is not complete."
  private val Place = """(cell-(\d+)[b-z]*):(\d+)""".r
  private val ErrorLine = """(cell \d+:\d+): error: (.*)""".r
  private val TypeOfDefinition = """(?m)^(\w+): [^=\n]+ = """.r
  private val Result = """(?s)(\w+): (.*?) =\s\n?(.*?)\n*""".r

  private def isName(char: Char): Boolean = char.isLetterOrDigit || char == '_' || char == '$'
}
