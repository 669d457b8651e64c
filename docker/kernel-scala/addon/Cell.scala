package org.apache.toree.elastic

import java.util.concurrent.{CountDownLatch, TimeUnit}

/** The thread of one cell, which can be interrupted whatever it does.
  *
  * Until the user's own code runs, an interrupt is only noted: the compiler keeps files open that an interrupted thread closes.
  */
final class Cell(group: ThreadGroup, val number: Int, body: () => Map[String, String])
    extends Thread(group, null, s"cell-$number", Cell.StackBytes) {
  private val lock = new Object
  private var depth = 0
  @volatile private var interruptedAt: Option[Seq[String]] = None
  @volatile private var outcome: Option[Either[Failure, Map[String, String]]] = None
  private val ended = new CountDownLatch(1)
  setDaemon(true)

  override def run(): Unit =
    try outcome = Some(
      try Right(body())
      catch { case thrown: Throwable => Left(Failure.of(thrown)) }
    )
    finally ended.countDown()

  /** Runs the cell to its end and returns what it displays, or why it failed. */
  def result(): Either[Failure, Map[String, String]] = {
    start()
    ended.await()
    (outcome, interruptedAt) match {
      case (Some(Right(data)), _) => Right(data)
      case (Some(_), Some(where)) => interrupted("The cell was interrupted.", where)
      case (None, Some(where))    => interrupted(if (isAlive) goesOn else "The cell was interrupted.", where)
      case (Some(failed), None)   => failed
      case (None, None)           => Left(Failure("Aborted", "The cell's thread ended without a result.", Nil))
    }
  }

  // Java can end neither what is not Java's nor what waits for a lock
  private def goesOn: String = getStackTrace.headOption.filter(_.isNativeMethod || getState == Thread.State.BLOCKED).fold(Cell.GoesOn) { at =>
    val call = s"${at.getClassName}.${at.getMethodName}"
    s"The cell was interrupted, but waits in $call, which nothing can interrupt, and ends when that returns: or restart the kernel."
  }

  private def interrupted(sentence: String, where: Seq[String]) = Left(Failure("Interrupted", sentence, s"Interrupted: $sentence" +: where))

  /** Ends the cell's code: cancels what it waits for, then asks its thread, then makes it. Returns at once. */
  def interruptCode(cancel: () => Unit): Unit = if (interruptedAt.isEmpty) {
    interruptedAt = Some(Failure.frames(getStackTrace))
    val thread = new Thread(() => {
      cancel()
      lock.synchronized { if (depth > 0) interrupt() }
      var stops = 0
      var millis = Cell.PatienceMillis
      var pause = Cell.PatienceMillis
      while (!ended.await(pause, TimeUnit.MILLISECONDS)) {
        pause = Cell.AgainMillis
        millis += pause
        if (stops == Cell.MaxStops) ended.countDown()
        else if (stopped(anywhere = millis > Cell.StopMillis)) stops += 1
      }
      // what the code began between the first call and its end
      cancel()
    }, s"interrupt-$number")
    thread.setDaemon(true)
    thread.start()
  }

  private def enter(): Unit = lock.synchronized {
    if (interruptedAt.nonEmpty) throw new InterruptedException
    depth += 1
  }

  private def leave(): Unit = lock.synchronized {
    depth -= 1
    if (depth == 0) Thread.interrupted()
  }

  /** Stops the thread if it may be stopped where it is, and tells whether it did. */
  private def stopped(anywhere: Boolean): Boolean = lock.synchronized {
    // under the lock, without which the thread could leave the user's code meanwhile
    val may = anywhere || isStoppable
    if (may) Cell.kill(this)
    may
  }

  /** Not while a class is loaded or initialized, which would be unusable for ever; nor in the compiler, with half of its tables written. */
  private def isStoppable: Boolean = depth > 0 && !getStackTrace.exists { frame =>
    val name = frame.getClassName
    (frame.getMethodName == "<clinit>" && !name.startsWith("$line")) || Cell.Delicate.exists(name.startsWith(_))
  }
}

object Cell {
  // deep recursion is common in Scala, and the compiler's own
  private val StackBytes = 16L << 20
  private val PatienceMillis = 1000L
  private val AgainMillis = 50L
  private val StopMillis = 15000L
  private val MaxStops = 20
  private val Delicate =
    Seq("java.lang.ClassLoader", "java.lang.invoke.", "jdk.internal.loader.", "scala.tools.nsc.Global", "org.codehaus.janino.")
  private val GoesOn =
    "The cell was interrupted, but its code catches that, too, and goes on in the background: restart the kernel to end it."

  /** Marks what runs as the user's code, if this is a cell's thread. */
  def userCode[T](body: => T): T = Thread.currentThread match {
    case cell: Cell =>
      cell.enter()
      try body
      finally cell.leave()
    case _ => body
  }

  // the only way to end a loop that looks at nothing; Java 17 has it, Java 20 has not
  @SuppressWarnings(Array("deprecation"))
  private def kill(thread: Thread): Unit = thread.stop()
}
