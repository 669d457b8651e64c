package org.apache.toree.elastic

import java.util.concurrent.{ExecutionException, Executors, TimeUnit, TimeoutException}

import org.apache.spark.SparkContext
import org.apache.spark.sql.SparkSession

import scala.concurrent.duration.Duration
import scala.concurrent.{Await, ExecutionContext, Future}

/** The kernel's Spark session: there at the first use (lazy), soon after the start (eager), or not at all (none).
  *
  * It starts on a thread of its own, so that a cell that is interrupted meanwhile leaves no half of it behind.
  */
final class Spark(mode: String, group: ThreadGroup, loader: () => ClassLoader) {
  private val starter = ExecutionContext.fromExecutor(Executors.newSingleThreadExecutor { task =>
    val thread = new Thread(group, task, "spark-start")
    thread.setDaemon(true)
    thread
  })
  private var starting: Option[Future[SparkSession]] = None
  private var jars = Seq.empty[String]
  /** The context that has all of them. */
  private var informed: Option[SparkContext] = None

  /** The session, which this waits for; its jobs are the running cell's. */
  def session(): SparkSession = {
    if (mode == "none") throw new CellError("SparkNotAvailable", "This kernel has no Spark session: its profile, or you, asked for none.")
    val session = alive.getOrElse(await(begin()))
    Thread.currentThread match {
      case cell: Cell => own(cell, session)
      case _          =>
    }
    session
  }

  /** Begins to start the session, and returns at once. */
  def begin(): Future[SparkSession] = synchronized {
    starting.filterNot(_.isCompleted).getOrElse {
      val begun = Future {
        Thread.currentThread.setContextClassLoader(loader())
        create()
      }(starter)
      starting = Some(begun)
      begun
    }
  }

  /** Makes jars that are on this machine known to executors: of the running session, or of the one to come. */
  def addJars(paths: Seq[String]): Unit = synchronized {
    jars ++= paths
    alive.foreach { session =>
      if (informed.contains(session.sparkContext)) paths.foreach(session.sparkContext.addJar) else inform(session)
    }
  }

  // a cell may have made its session by itself
  private def inform(session: SparkSession): Unit = synchronized {
    val context = session.sparkContext
    if (!informed.contains(context)) jars.foreach(context.addJar)
    informed = Some(context)
  }

  /** To be called at a cell's begin: jobs that its threads start can be cancelled with it. */
  def own(cell: Cell): Unit = alive.foreach(own(cell, _))

  def cancel(cell: Cell): Unit = alive.foreach(_.sparkContext.cancelJobsWithTag(tag(cell)))

  /** The application that has jobs and no executors, if it is so; the driver counts itself among these. */
  def waiting: Option[String] = alive.map(_.sparkContext).filter { context =>
    val tracker = context.statusTracker
    !context.isLocal && tracker.getActiveJobIds.nonEmpty && tracker.getExecutorInfos.length <= 1
  }.map(_.applicationId)

  def cancelAll(reason: String): Unit = alive.map(_.sparkContext).foreach { context =>
    context.statusTracker.getActiveJobIds.foreach(context.cancelJob(_, reason))
  }

  private def own(cell: Cell, session: SparkSession): Unit = {
    inform(session)
    session.sparkContext.addJobTag(tag(cell))
    session.sparkContext.setInterruptOnCancel(true)
  }

  private def tag(cell: Cell): String = s"cell-${cell.number}"

  private def alive: Option[SparkSession] = SparkSession.getDefaultSession.filterNot(_.sparkContext.isStopped)

  private def create(): SparkSession =
    try {
      val session = SparkSession.builder.getOrCreate
      inform(session)
      session
    } catch {
      // such as a class that is not there: a Future would never end with it
      case fatal: Throwable => throw new ExecutionException(fatal)
    }

  private def await(begun: Future[SparkSession]): SparkSession =
    try {
      try Await.result(begun, Duration(Spark.QuietSeconds, TimeUnit.SECONDS))
      catch {
        case _: TimeoutException if !begun.isCompleted =>
          Console.err.println("Waiting for Spark to start ...")
          Await.result(begun, Duration.Inf)
      }
    } catch {
      case boxed: ExecutionException if boxed.getCause != null => throw boxed.getCause
    }
}

object Spark {
  private val QuietSeconds = 30L
}
