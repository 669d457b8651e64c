package org.apache.toree.elastic

import java.io.OutputStream
import java.net.{URI, URL}

import org.apache.toree.dependencies.{CoursierDependencyDownloader, Credentials}
import org.apache.toree.magic.builtin
import org.apache.toree.plugins.dependencies.DependencyManager
import org.apache.toree.plugins.{Plugin, PluginManager}
import org.apache.toree.utils.DataFrameConverter

/** The magics by name: to look for them, as Toree does, takes seconds at each start. */
class NamedPlugins extends PluginManager {
  private val classes = Seq(
    classOf[AddDeps], classOf[AddJar], classOf[builtin.Html], classOf[builtin.JavaScript],
    classOf[builtin.ShowOutput], classOf[builtin.ShowTypes], classOf[builtin.Truncation], classOf[DataFrameConverter]
  )

  override def initialize(): Seq[Plugin] = {
    val loaded = classes.map(found => loadPlugin(found.getName, found).get)
    initializePlugins(loaded, DependencyManager.Empty).flatMap(_.toTry.failed.toOption).foreach(throw _)
    loaded
  }
}

/** Toree's, which print how they are used where they ought to fail. */
class AddJar extends builtin.AddJar {
  override def printHelp(output: OutputStream, usage: String): Unit = throw new CellError("MagicError", s"write: $usage")
}

class AddDeps extends builtin.AddDeps {
  override def printHelp(output: OutputStream, usage: String): Unit = throw new CellError("MagicError", s"write: $usage")
}

/** Toree's, which says what it could not find and goes on. */
class Downloader extends CoursierDependencyDownloader {
  override def retrieve(
    groupId: String, artifactId: String, version: String, transitive: Boolean, excludeBaseDependencies: Boolean,
    ignoreResolutionErrors: Boolean, extraRepositories: Seq[(URL, Option[Credentials])], verbose: Boolean, trace: Boolean,
    configuration: Option[String], artifactType: Option[String], artifactClassifier: Option[String], excludes: Set[(String, String)]
  ): Seq[URI] = {
    val found = super.retrieve(
      groupId, artifactId, version, transitive, excludeBaseDependencies, ignoreResolutionErrors = false, extraRepositories, verbose, trace,
      configuration, artifactType, artifactClassifier, excludes
    )
    if (!found.exists(_.getPath.contains(s"/$artifactId-$version")))
      throw new CellError(
        "DependencyNotFound", s"$groupId:$artifactId:$version, or something that it needs, could not be found; the lines above say what.")
    found
  }
}
