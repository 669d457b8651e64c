package org.apache.toree.elastic

import java.io.{ByteArrayOutputStream, InputStream, OutputStream, PrintStream}
import java.nio.charset.StandardCharsets.UTF_8
import java.util.concurrent.{Executors, LinkedBlockingQueue, TimeUnit}

/** One of a cell's two outputs: what is written becomes stream messages, in order, and never half a character. */
final class CellOutput(send: String => Unit) extends OutputStream {
  private val MaxBytes = 1 << 16
  private val bytes = new ByteArrayOutputStream

  override def write(byte: Int): Unit = synchronized { bytes.write(byte) }

  override def write(data: Array[Byte], offset: Int, length: Int): Unit = synchronized {
    bytes.write(data, offset, length)
    if (bytes.size > MaxBytes) flush()
  }

  // sent under the lock, or another thread's flush could overtake it
  override def flush(): Unit = synchronized {
    val data = bytes.toByteArray
    val whole = data.length - unfinished(data)
    if (whole > 0) {
      bytes.reset()
      bytes.write(data, whole, data.length - whole)
      send(new String(data, 0, whole, UTF_8))
    }
  }

  /** How many bytes at the end belong to a character whose other bytes are still to come. */
  private def unfinished(data: Array[Byte]): Int =
    (1 to math.min(3, data.length)).find(back => (data(data.length - back) & 0xc0) != 0x80).filter { back =>
      val first = data(data.length - back) & 0xff
      back < (if (first >= 0xf0) 4 else if (first >= 0xe0) 3 else if (first >= 0xc0) 2 else 1)
    }.getOrElse(0)
}

/** What a cell may read: each line is asked of whoever sits at the notebook. */
final class CellInput(ask: () => Unit, allowed: Boolean) extends InputStream {
  private val lines = new LinkedBlockingQueue[String]
  private var rest = Array.empty[Byte]
  private var next = 0

  def answer(line: String): Unit = lines.put(line)

  override def available(): Int = rest.length - next

  override def read(): Int = {
    if (available() == 0) fill()
    next += 1
    rest(next - 1) & 0xff
  }

  // a reader that fills its buffer must not ask for a second line
  override def read(buffer: Array[Byte], offset: Int, length: Int): Int = {
    if (length > 0 && available() == 0) fill()
    val count = math.min(length, available())
    System.arraycopy(rest, next, buffer, offset, count)
    next += count
    count
  }

  private def fill(): Unit = {
    if (!allowed) throw new CellError("StdinNotAvailable", "The cell reads input, and nobody is there to give it.")
    ask()
    rest = (lines.take() + "\n").getBytes(UTF_8)
    next = 0
  }
}

/** The process's standard streams: what threads of cells do with them is the current cell's, all else goes where it went before. */
final class Streams(group: ThreadGroup) {
  @volatile private var cell: Option[(CellOutput, CellOutput, CellInput)] = None

  private val oldOut = System.out
  private val oldErr = System.err
  private val oldIn = System.in

  /** What the launcher writes to this process. */
  def ofLauncher: InputStream = oldIn

  val out = new PrintStream(router(oldOut, _._1), false, "UTF-8")
  val err = new PrintStream(router(oldErr, _._2), false, "UTF-8")
  val in: InputStream = new InputStream {
    private def target: InputStream = cell.filter(_ => isCells).fold(oldIn)(_._3)
    override def read(): Int = target.read()
    override def read(buffer: Array[Byte], offset: Int, length: Int): Int = target.read(buffer, offset, length)
    override def available(): Int = target.available()
  }

  /** Called once, before any cell. */
  def install(): Unit = {
    System.setOut(out)
    System.setErr(err)
    System.setIn(in)
    val timer = Executors.newSingleThreadScheduledExecutor { task =>
      val thread = new Thread(task, "cell-output")
      thread.setDaemon(true)
      thread
    }
    timer.scheduleWithFixedDelay(() => flush(), 100, 100, TimeUnit.MILLISECONDS)
  }

  /** From now on, what threads of cells print belongs to these; also what the last cell's threads print after its end. */
  def redirect(out: CellOutput, err: CellOutput, in: CellInput): Unit = {
    flush()
    cell = Some((out, err, in))
  }

  /** Scala's own notion of the standard streams, which it keeps for each thread. */
  def withConsole[T](body: => T): T = Console.withIn(in)(Console.withOut(out)(Console.withErr(err)(body)))

  /** Writes to the current cell's stderr, from any thread. */
  def say(text: String): Unit = cell.foreach(_._2.write(text.getBytes(UTF_8)))

  def flush(): Unit = cell.foreach { case (out, err, _) =>
    out.flush()
    err.flush()
  }

  def answer(line: String): Unit = cell.foreach(_._3.answer(line))

  private def isCells: Boolean = {
    val current = Thread.currentThread.getThreadGroup
    current != null && group.parentOf(current)
  }

  private def router(old: PrintStream, pick: ((CellOutput, CellOutput, CellInput)) => OutputStream): OutputStream = new OutputStream {
    private def target: OutputStream = cell.filter(_ => isCells).fold[OutputStream](old)(pick)
    override def write(byte: Int): Unit = target.write(byte)
    override def write(data: Array[Byte], offset: Int, length: Int): Unit = target.write(data, offset, length)
    override def flush(): Unit = target.flush()
  }
}
