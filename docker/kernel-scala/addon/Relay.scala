package org.apache.toree.elastic

import java.nio.charset.StandardCharsets.UTF_8
import java.security.MessageDigest

import akka.actor.{Actor, ActorRef, ActorRefFactory, Stash}
import org.apache.toree.communication.security.Hmac
import org.apache.toree.kernel.protocol.v5._
import org.apache.toree.kernel.protocol.v5.kernel.{ActorLoader, SimpleActorLoader}
import org.apache.toree.utils.LogLike
import play.api.libs.json.{JsValue, Json}

/** Between the sockets and what answers: checks and writes signatures, and hands each message on in the order in which it came.
  *
  * Toree's own relay sends each kind of message through an actor of its own, where an error can be overtaken by the idle status.
  */
class Relay(loader: ActorLoader, hmac: Hmac, answer: KernelMessage => Unit) extends Actor with Stash with LogLike {
  private var isReady = false

  override def receive: Receive = {
    case ready: Boolean =>
      isReady = ready
      unstashAll()
    case (frames: Seq[_], message: KernelMessage) =>
      if (!isSigned(frames.map(_.toString), message)) logger.error(s"A ${message.header.msg_type} with a wrong signature is ignored")
      else if (isReady || message.header.msg_type == "shutdown_request") answered(message)
      else stash()
    case message: KernelMessage =>
      val header = message.header.copy(version = Sender.Version)
      val parts = Seq(Json.toJson(header), Json.toJson(message.parentHeader), Json.toJson(message.metadata)).map(Json.stringify)
      val signature = hmac(parts :+ message.contentString: _*)
      loader.load(Relay.socket(header.msg_type)) ! message.copy(header = header, signature = signature)
  }

  /** An actor that throws starts anew, and would wait for its kernel for ever. */
  private def answered(message: KernelMessage): Unit =
    try answer(message)
    catch { case thrown: Throwable => logger.error(s"A ${message.header.msg_type} was not answered", thrown) }

  private def isSigned(frames: Seq[String], message: KernelMessage): Boolean =
    MessageDigest.isEqual(hmac(frames: _*).getBytes(UTF_8), message.signature.getBytes(UTF_8))
}

object Relay {
  private val Control = Set("shutdown_reply", "interrupt_reply")

  def socket(kind: String): SocketType.Value = kind match {
    case "input_request"               => SocketType.StdIn
    case control if Control(control)   => SocketType.Control
    case reply if reply.endsWith("_reply") => SocketType.Shell
    case _                             => SocketType.IOPub
  }
}

/** Sends messages to clients, from any thread; those of one thread arrive in their order. */
final class Sender(relay: ActorRef) {
  def reply(request: KernelMessage, kind: String, content: JsValue): Unit = send(request.ids, kind, request.header, content)

  def publish(request: KernelMessage, kind: String, content: JsValue): Unit = send(Seq(kind.getBytes(UTF_8)), kind, request.header, content)

  def ask(request: KernelMessage): Unit =
    send(request.ids, "input_request", request.header, Json.obj("prompt" -> "", "password" -> false))

  def status(request: KernelMessage, state: String): Unit = publish(request, "status", Json.obj("execution_state" -> state))

  private def send(ids: Seq[Array[Byte]], kind: String, parent: Header, content: JsValue): Unit =
    relay ! KMBuilder().withIds(ids).withHeader(kind).withParentHeader(parent).withContentString(Json.stringify(content)).build
}

object Sender {
  /** The version of the protocol that is spoken: the one with interrupts as messages. */
  val Version = "5.3"
}
