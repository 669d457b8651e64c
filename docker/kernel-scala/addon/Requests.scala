package org.apache.toree.elastic

import java.util.concurrent.{LinkedBlockingQueue, TimeUnit}

import org.apache.toree.comm.CommStorage
import org.apache.toree.global.ExecuteRequestState
import org.apache.toree.kernel.protocol.v5.kernel.ActorLoader
import org.apache.toree.kernel.protocol.v5.{KernelMessage, MessageType, SparkKernelInfo}
import org.apache.toree.utils.LogLike
import play.api.libs.json.{JsObject, JsValue, Json}

import scala.collection.JavaConverters._

/** Answers what clients ask, one after the other, in the order in which it came; at once only what is for the cell that runs.
  *
  * Whoever asks what kernel this is takes the answer for a sign that nothing runs, and the idle status that follows it.
  */
final class Requests(
  send: Sender,
  loader: ActorLoader,
  interpreter: CellInterpreter,
  magics: Magics,
  spark: Spark,
  streams: Streams,
  group: ThreadGroup,
  comms: CommStorage
) extends LogLike {
  private val queue = new LinkedBlockingQueue[KernelMessage]
  @volatile private var running: Option[Cell] = None
  private var count = 0

  /** Called on the relay's thread, for each request. */
  def apply(request: KernelMessage): Unit = request.header.msg_type match {
    case "interrupt_request" =>
      interrupt()
      answered(request)(send.reply(request, "interrupt_reply", Json.obj("status" -> "ok")))
    case "shutdown_request" => shutDown(request)
    case "input_reply"      => streams.answer((Json.parse(request.contentString) \ "value").asOpt[String].getOrElse(""))
    case "comm_open"        => loader.load(MessageType.withName("incoming_comm_open")) ! request
    case "comm_msg"         => loader.load(MessageType.withName("incoming_comm_msg")) ! request
    case "comm_close"       => loader.load(MessageType.withName("incoming_comm_close")) ! request
    case _                  => queue.put(request)
  }

  def isRunning: Boolean = running.isDefined

  /** Interrupts the running cell, if one runs. */
  def interrupt(): Unit = running.foreach(cell => cell.interruptCode(() => spark.cancel(cell)))

  /** To be called once all is ready. */
  def start(): Unit = {
    val thread = new Thread(() => while (true) {
      val request = queue.take()
      try answered(request)(handle(request))
      catch { case thrown: Throwable => logger.error(s"A ${request.header.msg_type} was not answered", thrown) }
    }, "requests")
    thread.setDaemon(true)
    thread.start()
  }

  private def answered(request: KernelMessage)(answer: => Unit): Unit = {
    send.status(request, "busy")
    try answer
    finally send.status(request, "idle")
  }

  private[elastic] def handle(request: KernelMessage): Unit = {
    val content = Json.parse(request.contentString)
    def code = (content \ "code").as[String]
    def position = (content \ "cursor_pos").asOpt[Int].getOrElse(code.length)
    request.header.msg_type match {
      case "execute_request" => execute(request, content)
      case "complete_request" =>
        val (start, found) = quietly((position, List.empty[String]))(interpreter.completion(code, position))
        send.reply(request, "complete_reply", Json.obj(
          "status" -> "ok", "matches" -> found.distinct, "cursor_start" -> start, "cursor_end" -> position, "metadata" -> Json.obj()))
      case "inspect_request" =>
        val found = quietly(Option.empty[String])(interpreter.inspect(code, position))
        send.reply(request, "inspect_reply", Json.obj(
          "status" -> "ok", "found" -> found.isDefined, "metadata" -> Json.obj(),
          "data" -> found.fold(Json.obj())(text => Json.obj("text/plain" -> text))))
      case "is_complete_request" =>
        val (status, indent) = quietly(("unknown", ""))(interpreter.isComplete(code))
        val more = if (status == "incomplete") Json.obj("indent" -> indent) else Json.obj()
        send.reply(request, "is_complete_reply", Json.obj("status" -> status) ++ more)
      case "kernel_info_request" => send.reply(request, "kernel_info_reply", kernelInfo)
      case "comm_info_request"   => send.reply(request, "comm_info_reply", commInfo(request))
      case "history_request"     => send.reply(request, "history_reply", Json.obj("status" -> "ok", "history" -> Json.arr()))
      case other                 => logger.warn(s"A $other is ignored: this kernel knows no such request")
    }
  }

  /** The compiler's answer, or another one if it fails; on a thread with a cell's stack. */
  private def quietly[T](otherwise: T)(ask: => T): T = {
    var answer = otherwise
    val helper = new Cell(group, 0, () => { answer = ask; Map.empty })
    helper.result().left.foreach(failure => logger.warn(s"The compiler did not answer: ${failure.message}"))
    answer
  }

  private def execute(request: KernelMessage, content: JsValue): Unit = {
    val code = (content \ "code").as[String]
    val silent = (content \ "silent").asOpt[Boolean].getOrElse(false)
    if (!silent) count += 1
    // what cells display through Toree's own ways belongs to this request
    ExecuteRequestState.processIncomingKernelMessage(request)
    if (!silent) send.publish(request, "execute_input", Json.obj("code" -> code, "execution_count" -> count))
    val input = new CellInput(() => send.ask(request), (content \ "allow_stdin").asOpt[Boolean].getOrElse(false))
    streams.redirect(output(request, "stdout"), output(request, "stderr"), input)
    lazy val cell: Cell = new Cell(group, count, () => streams.withConsole {
      spark.own(cell)
      magics.evaluate(code, count, silent)
    })
    running = Some(cell)
    val outcome = try cell.result() finally running = None
    streams.flush()
    outcome match {
      case Right(data) =>
        val result = Json.obj("execution_count" -> count, "data" -> data, "metadata" -> Json.obj())
        if (!silent && data.nonEmpty) send.publish(request, "execute_result", result)
        send.reply(request, "execute_reply", Json.obj(
          "status" -> "ok", "execution_count" -> count, "payload" -> Json.arr(), "user_expressions" -> Json.obj()))
      case Left(failure) =>
        val error = Json.obj(
          "ename" -> failure.name,
          "evalue" -> interpreter.located(failure.message),
          "traceback" -> failure.traceback.map(interpreter.located))
        send.publish(request, "error", error)
        send.reply(request, "execute_reply", Json.obj("status" -> "error", "execution_count" -> count) ++ error)
        if ((content \ "stop_on_error").asOpt[Boolean].getOrElse(true)) abortQueued()
    }
  }

  /** As the protocol has it, a failure ends what was sent after the cell and before its answer. */
  private def abortQueued(): Unit = {
    val waiting = new java.util.ArrayList[KernelMessage]
    queue.drainTo(waiting)
    val (cells, others) = waiting.asScala.partition(_.header.msg_type == "execute_request")
    cells.foreach(cell => answered(cell)(send.reply(cell, "execute_reply", Json.obj("status" -> "aborted", "execution_count" -> count))))
    others.foreach(queue.put)
  }

  private def output(request: KernelMessage, name: String): CellOutput =
    new CellOutput(text => send.publish(request, "stream", Json.obj("name" -> name, "text" -> text)))

  private def kernelInfo: JsObject = {
    val language = interpreter.languageInfo
    Json.obj(
      "status" -> "ok", "protocol_version" -> Sender.Version, "implementation" -> SparkKernelInfo.implementation,
      "implementation_version" -> SparkKernelInfo.implementationVersion, "banner" -> SparkKernelInfo.banner, "help_links" -> Json.arr(),
      "language_info" -> Json.obj(
        "name" -> language.name, "version" -> language.version, "mimetype" -> language.mimeType, "file_extension" -> language.fileExtension,
        "pygments_lexer" -> language.pygmentsLexer, "codemirror_mode" -> language.codemirrorMode))
  }

  private def commInfo(request: KernelMessage): JsObject = {
    val wanted = (Json.parse(request.contentString) \ "target_name").asOpt[String]
    val found = for {
      target <- comms.getTargets().toSeq if wanted.forall(_ == target)
      id <- comms.getCommIdsFromTarget(target).toSeq.flatten
    } yield id -> Json.obj("target_name" -> target)
    Json.obj("status" -> "ok", "comms" -> JsObject(found))
  }

  private def shutDown(request: KernelMessage): Unit = {
    val restart = (Json.parse(request.contentString) \ "restart").asOpt[Boolean].getOrElse(false)
    answered(request)(send.reply(request, "shutdown_reply", Json.obj("status" -> "ok", "restart" -> restart)))
    val thread = new Thread(() => {
      // the answer is still on its way
      TimeUnit.MILLISECONDS.sleep(Requests.FarewellMillis)
      System.exit(0)
    }, "shutdown")
    thread.start()
  }
}

object Requests {
  private val FarewellMillis = 200L
}
