package org.apache.toree.elastic

import java.io.{FileOutputStream, OutputStream}
import java.net.URI
import java.nio.file.{Files, Path, Paths}

import akka.actor.{ActorRef, ActorSystem, Props}
import com.typesafe.config.{Config, ConfigFactory}
import org.apache.toree.boot.layer._
import org.apache.toree.boot.{CommandLineOptions, KernelBootstrap}
import org.apache.toree.comm.{CommManager, CommRegistrar, CommStorage, KernelCommManager}
import org.apache.toree.communication.security.{Hmac, HmacAlgorithm}
import org.apache.toree.dependencies.DependencyDownloader
import org.apache.toree.interpreter.Interpreter
import org.apache.toree.kernel.api.{DisplayMethodsLike, Kernel}
import org.apache.toree.kernel.protocol.v5.dispatch.StatusDispatch
import org.apache.toree.kernel.protocol.v5.handler.{CommCloseHandler, CommMsgHandler, CommOpenHandler}
import org.apache.toree.kernel.protocol.v5.kernel.socket._
import org.apache.toree.kernel.protocol.v5.kernel.{ActorLoader, SimpleActorLoader}
import org.apache.toree.kernel.protocol.v5.{KMBuilder, MessageType, SocketType, SystemActorType}
import org.apache.toree.magic.MagicManager
import org.apache.toree.plugins.PluginManager
import org.apache.toree.utils.{DataFrameConverter, FileUtils, LogLike, TaskManager}

import scala.collection.JavaConverters._

/** Toree with the way of a request through it replaced: what it answers is true, and in order. */
object Main {
  private val NoKernel = 69
  /** The variable with the launcher's file: a first line once the kernel answers, and one whenever a job waits for executors. */
  private val ReadyFile = "ELASTIC_KERNELS_READY_FILE"
  private val Rehearse = "elastic.rehearse"

  def main(arguments: Array[String]): Unit = {
    val interpreters = Seq(s"Scala:${classOf[CellInterpreter].getName}").asJava
    val ours = ConfigFactory.parseMap(Map("default_interpreter_plugin" -> interpreters).asJava)
    val config = ours.withFallback(new CommandLineOptions(arguments).toConfig)
    try {
      val kernel = new Bootstrap(config)
      kernel.initialize()
      sys.env.get(ReadyFile).foreach { file =>
        val launcher = new FileOutputStream(file)
        launcher.write('\n')
        kernel.watch(launcher)
      }
      if (sys.props.contains(Rehearse)) Rehearsal.main(kernel.toAnswer)
      kernel.waitForTermination().shutdown()
    }
    catch {
      case thrown: Throwable =>
        thrown.printStackTrace()
        System.err.println(s"elastic-kernels: Toree does not start: ${Failure.of(thrown).message} (${thrown.getClass.getName})")
        // threads of a half of a kernel would keep it running for ever
        Runtime.getRuntime.halt(NoKernel)
    }
  }
}

class Bootstrap(config: Config) extends KernelBootstrap(config) with Wiring with StandardHookInitialization with LogLike {
  def toAnswer: Requests = requests

  def watch(launcher: OutputStream): Unit = new Waits(spark, requests, streams, launcher).start()

  override def initializeHooks(config: Config, interpreter: Interpreter): Unit = {
    val handler: sun.misc.SignalHandler = _ => requests.interrupt()
    sun.misc.Signal.handle(new sun.misc.Signal("INT"), handler)
    if (config.hasPath("alternate_sigint")) sun.misc.Signal.handle(new sun.misc.Signal(config.getString("alternate_sigint")), handler)
  }
}

/** Which parts of Toree a kernel is made of. The order of calls is KernelBootstrap's. */
trait Wiring extends BareInitialization with ComponentInitialization with HandlerInitialization { this: LogLike =>
  // Toree forbids System.exit to threads of this group
  private val group = TaskManager.DefaultThreadGroup
  protected val streams = new Streams(group)
  protected var spark: Spark = _
  private var send: Sender = _
  protected var requests: Requests = _

  override def initializeBare(config: Config, name: String): (ActorSystem, ActorLoader, ActorRef, ActorRef) = {
    streams.install()
    val system = ActorSystem(name)
    val loader = SimpleActorLoader(system)
    val hmac = Hmac(config.getString("key"), HmacAlgorithm(config.getString("signature_scheme").replace("-", "")))
    val relay = system.actorOf(Props(new Relay(loader, hmac, requests(_))), SystemActorType.KernelMessageRelay.toString)
    send = new Sender(relay)
    val status = system.actorOf(Props(classOf[StatusDispatch], loader), SystemActorType.StatusDispatch.toString)
    (system, loader, relay, status)
  }

  override def initializeComponents(config: Config, loader: ActorLoader): Wiring.Components = {
    val storage = new CommStorage
    val registrar = new CommRegistrar(storage)
    val comms = new KernelCommManager(loader, KMBuilder(), registrar)
    val interpreters = InterpreterManager(config)
    val interpreter = interpreters.interpreters("Scala").asInstanceOf[CellInterpreter]
    spark = new Spark(config.getString("spark_context_initialization_mode"), group, () => interpreter.classLoaderOfCells)
    val downloader = new Downloader
    downloader.setDownloadDirectory(FileUtils.createManagedTempDirectory("toree_add_deps"))
    lazy val plugins: NamedPlugins = new NamedPlugins(Seq(interpreter, downloader, config, plugins, kernel, new DataFrameConverter))
    lazy val kernel: CellKernel = new CellKernel(config, loader, interpreters, comms, plugins, streams, spark)
    plugins.initialize()
    interpreters.initializeInterpreters(kernel)
    val magics = new Magics(plugins, interpreter, spark, streams.out)
    requests = new Requests(send, loader, interpreter, magics, spark, streams, group, storage)
    (storage, registrar, comms, interpreter, kernel, downloader, kernel.magics, plugins, collection.mutable.Map.empty)
  }

  override def initializeHandlers(
    system: ActorSystem,
    loader: ActorLoader,
    kernel: Kernel,
    interpreter: Interpreter,
    plugins: PluginManager,
    magics: MagicManager,
    registrar: CommRegistrar,
    storage: CommStorage,
    responses: Wiring.Responses
  ): Unit = {
    Seq(
      classOf[CommOpenHandler] -> MessageType.withName("incoming_comm_open"),
      classOf[CommMsgHandler] -> MessageType.withName("incoming_comm_msg"),
      classOf[CommCloseHandler] -> MessageType.withName("incoming_comm_close")
    ).foreach { case (handler, kind) => system.actorOf(Props(handler, loader, registrar, storage), kind.toString) }
    requests.start()
    // last of all: whoever finds the ports open finds a kernel
    val sockets = SocketFactory(SocketConfig.fromConfig(kernel.config))
    system.actorOf(Props(classOf[Heartbeat], sockets), SocketType.Heartbeat.toString)
    system.actorOf(Props(classOf[Stdin], sockets, loader), SocketType.StdIn.toString)
    system.actorOf(Props(classOf[Shell], sockets, loader), SocketType.Shell.toString)
    system.actorOf(Props(classOf[Control], sockets, loader), SocketType.Control.toString)
    system.actorOf(Props(classOf[IOPub], sockets), SocketType.IOPub.toString)
    if (kernel.config.getString("spark_context_initialization_mode") == "eager") spark.begin()
  }
}

object Wiring {
  type Responses = collection.mutable.Map[String, ActorRef]
  type Components = (
    CommStorage, CommRegistrar, CommManager, Interpreter, Kernel, DependencyDownloader, MagicManager, PluginManager, Responses
  )
}

/** What cells know as `kernel`, with one pair of streams and one Spark session. */
class CellKernel(
  config: Config,
  loader: ActorLoader,
  interpreters: InterpreterManager,
  comms: CommManager,
  plugins: PluginManager,
  streams: Streams,
  spark: Spark
) extends Kernel(config, loader, interpreters, comms, plugins) {
  override def sparkSession: org.apache.spark.sql.SparkSession = spark.session()
  override def out: java.io.PrintStream = streams.out
  override def err: java.io.PrintStream = streams.err
  override def in: java.io.InputStream = streams.in

  override def display: DisplayMethodsLike = {
    // what was printed before is shown before
    streams.flush()
    super.display
  }

  override def addJars(uris: URI*): Unit = {
    uris.filter(_.getScheme != "file").foreach(uri => throw new CellError("MagicError", s"$uri is not a file of this machine"))
    if (config.hasPath("jar_dir")) uris.foreach(keep(_, Paths.get(config.getString("jar_dir"))))
    interpreter.addJars(uris.map(_.toURL): _*)
    spark.addJars(uris.map(_.getPath))
  }

  /** The next kernel starts with what is in this folder. */
  private def keep(uri: URI, folder: Path): Unit = {
    val target = folder.resolve(Paths.get(uri).getFileName)
    if (!Files.exists(target)) Files.copy(Paths.get(uri), target)
  }
}
