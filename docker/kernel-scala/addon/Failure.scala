package org.apache.toree.elastic

/** Why a cell failed, as the protocol says it: texts, none of them null. */
case class Failure(name: String, message: String, traceback: Seq[String])

/** A failure that is no exception of the user's: its sentence, and the lines that explain it, are all there is to say. */
class CellError(val name: String, message: String, val lines: Seq[String] = Nil) extends RuntimeException(message) {
  override def fillInStackTrace(): Throwable = this
}

/** Turns whatever was thrown into texts. Its class may have overridden any method, so that each is called with care. */
object Failure {
  private val MaxCauses = 8
  private val MaxFrames = 40
  private val MaxMessage = 20000
  // classes of cells are nested in wrappers that nobody wrote
  private val Wrapper = """\$line\d+\.\$(?:read|eval)(?:\$\$iw|\$iw|\$)*\.?""".r
  private val Below = Seq("org.apache.toree.elastic.", "scala.tools.nsc.interpreter.", "jdk.internal.reflect.", "java.lang.reflect.")
  private val SparksOwn = "Driver stacktrace:"

  def of(thrown: Throwable): Failure = thrown match {
    case error: CellError => Failure(error.name, error.getMessage, s"${error.name}: ${error.getMessage}" +: error.lines)
    case _                => Failure(name(thrown), title(message(thrown)), trace(thrown, "", MaxCauses, Set.empty))
  }

  /** The frames of a stack trace down to the cell's code. */
  def frames(all: Seq[StackTraceElement]): Seq[String] = {
    val (inner, outer) = all.takeWhile(frame => !Below.exists(frame.getClassName.startsWith(_))).span(frame => !isCell(frame))
    val left = if (inner.size > MaxFrames) Seq(s"    ... ${inner.size - MaxFrames} more") else Nil
    inner.take(MaxFrames).map(shown) ++ left ++ outer.headOption.map(shown)
  }

  /** A cell's statements are the constructor of a wrapper, which has one for each import around it. */
  private def isCell(frame: StackTraceElement): Boolean =
    frame.getMethodName.matches("<(?:cl)?init>") && Wrapper.replaceFirstIn(frame.getClassName, "").isEmpty

  // class loaders and modules, which are no news, come before a slash
  private def shown(frame: StackTraceElement): String =
    "    at " + readable(frame.toString.replaceFirst("""^[^(]*/""", "")).replaceFirst("""^<(?:cl)?init>""", "")

  private def name(thrown: Throwable): String = readable(thrown.getClass.getName)

  def readable(text: String): String = Wrapper.replaceAllIn(text, "")

  private def message(thrown: Throwable): String = careful(thrown.getLocalizedMessage) match {
    case Right(null)  => "no message"
    case Right(text)  => readable(if (text.length > MaxMessage) text.take(MaxMessage) + " ..." else text)
    case Left(second) => s"no message: asking for it threw ${second.getClass.getName}"
  }

  /** Spark puts the stack trace of an executor into the message; a title has no room for it. */
  private def title(message: String): String = {
    val text = message.split("\n").takeWhile(line => !line.startsWith("\tat ") && !line.startsWith(SparksOwn)).mkString("\n").trim
    if (text.isEmpty) "no message" else text
  }

  private def trace(thrown: Throwable, prefix: String, causes: Int, seen: Set[Int]): Seq[String] = {
    val head = s"$prefix${name(thrown)}: ${message(thrown)}".split("\n").toSeq.filterNot(_.startsWith(SparksOwn))
    val own = careful(thrown.getStackTrace).right.toOption.flatMap(Option(_)).map(_.toSeq).getOrElse(Nil)
    val cause = careful(thrown.getCause).right.toOption.flatMap(Option(_))
      .filter(next => causes > 0 && !seen(System.identityHashCode(next)))
    head ++ frames(own) ++ cause.toSeq.flatMap(trace(_, "Caused by: ", causes - 1, seen + System.identityHashCode(thrown)))
  }

  private def careful[T](ask: => T): Either[Throwable, T] =
    try Right(ask)
    catch { case second: Throwable => Left(second) }
}
