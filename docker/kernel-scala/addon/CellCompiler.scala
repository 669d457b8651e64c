// in this package because the compiler shares the steps of an interpretation only within it
package scala.tools.nsc.interpreter

import java.util.concurrent.ConcurrentHashMap

import scala.tools.nsc.Settings
import scala.tools.nsc.util.Exceptional.unwrap

/** Scala's interpreter with its steps apart, because each of them can fail in a way of its own: parse, compile, run. */
class CellCompiler(settings: Settings, out: JPrintWriter) extends IMain(settings, out) {
  private val classFiles = new ConcurrentHashMap[String, String]

  /** Whether code parses, needs more lines, or neither; empty code and mere comments have no statements. */
  def parsed(code: String): CodeState = beSilentDuring {
    // errors of the code before would count as errors of this
    reporter.reset()
    parse(code) match {
      case parse.Success(trees) => if (trees.isEmpty) CodeState.Empty else CodeState.Complete
      case parse.Incomplete(_)  => CodeState.Incomplete
      case _                    => CodeState.Invalid
    }
  }

  /** The request that stands for code, or None with the errors printed. Messages and stack traces show the label.
    *
    * @param first a line that runs before code that defines classes, as a part of it
    */
  def prepared(code: String, label: String, first: String): Option[PreparedCode] = {
    val lines = if (first.nonEmpty && definesClasses(code)) Seq(first) else Nil
    reporter.reset()
    val request = withLabel(label)(requestFromLine((lines :+ code).mkString("\n")))
    request.right.toOption.flatMap(Option(_)).map(new Compiling(_, label, lines.size))
  }

  private def definesClasses(code: String): Boolean = beSilentDuring(parse(code).trees.exists(_.isInstanceOf[global.ClassDef]))

  /** @param first how many lines of the request come before the cell's */
  private class Compiling(request: Request, label: String, first: Int) extends PreparedCode {
    override lazy val isCompiled: Boolean = withLabel(label)(request.compile)

    override def run(): Either[Throwable, String] = classLoader.asContext {
      request.lineRep.callEither(naming.sessionNames.print).left.map(unwrap).right.map(String.valueOf)
    }

    override def keep(): Unit = recordRequest(request)

    override def resultName: Option[String] =
      if (request.originalLine eq request.line) None else request.handlers.lastOption.flatMap(_.definesTerm).map(_.decoded.trim)

    override def lines: CellLines = {
      val before = request.lineRep.packaged(request.ObjectSourceCode.preamble).count(_ == '\n') - request.toCompute.count(_ == '\n')
      val inserted = request.line.count(_ == '\n') - request.originalLine.count(_ == '\n')
      val at = resultName.map(name => request.line.take(request.line.lastIndexOf(s"val $name =\n")).count(_ == '\n') + 1)
      CellLines(before + first, at.fold(Int.MaxValue)(_ - first), inserted)
    }
  }

  /** Where the class is that a cell gave this name. Whatever thread looks for a class that is not there asks this, such as Spark's while
    * they compile a query: it must not take the compiler, as the original does, because another thread may be compiling a cell.
    */
  override def translateSimpleResource(path: String): Option[String] = Option(classFiles.get(path))

  override def recordRequest(request: Request): Unit = {
    super.recordRequest(request)
    for {
      name <- global.exitingTyper(request.defines.map(_.name.encoded))
      path <- Seq(s"$name.class", s"$name$$.class")
      file <- super.translateSimpleResource(path)
    } classFiles.put(path, file)
  }

  /** A module of the cells' is one that this has compiled; what runs is asked only after that, because reflection begins slowly. */
  override def getModuleIfDefined(path: String): global.Symbol =
    global.rootMirror.getModuleIfDefined(path) orElse super.getModuleIfDefined(path)

  /** The type of an expression as text, or None. */
  def typeOf(expression: String): Option[String] = {
    val found = typeOfExpression(expression, silent = true)
    if (found == global.NoType) None else Some(found.toString)
  }
}

/** Code on its way through the compiler. */
trait PreparedCode {
  /** Whether it compiles; false with the errors printed. */
  def isCompiled: Boolean

  /** Runs it and returns what the interpreter would print. */
  def run(): Either[Throwable, String]

  /** Has its definitions count from now on. */
  def keep(): Unit

  /** The name that the interpreter gave to the value of the last expression, if it is one. */
  def resultName: Option[String]

  /** Where the lines of the code are in what was really compiled. */
  def lines: CellLines
}

/** @param before lines that the interpreter puts before a cell's code
  * @param last the line with which the interpreter gives the last expression a name
  * @param inserted lines that came into the code with it
  */
case class CellLines(before: Int, last: Int, inserted: Int) {
  def lineInCell(compiled: Int): Int = {
    val line = compiled - before
    math.max(1, if (line >= last) line - inserted else line)
  }
}

sealed trait CodeState

object CodeState {
  case object Empty extends CodeState
  case object Complete extends CodeState
  case object Incomplete extends CodeState
  case object Invalid extends CodeState
}
