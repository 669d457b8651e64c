package org.apache.toree.elastic

import java.io.OutputStream
import java.net.{URI, URL}

import org.apache.toree.dependencies.{CoursierDependencyDownloader, Credentials}
import org.apache.toree.magic.builtin
import org.apache.toree.plugins.annotations.Init
import org.apache.toree.plugins.dependencies.{Dependency, DependencyManager}
import org.apache.toree.plugins.{Plugin, PluginManager}

/** The magics by name: to look for them, as Toree does, takes seconds at each start.
  *
  * @param parts what a magic may ask for in its methods that are marked with Init
  */
class NamedPlugins(parts: => Seq[AnyRef]) extends PluginManager(dependencyManager = new LateDependencies(parts)) {
  private val classes = Seq(
    classOf[AddDeps], classOf[AddJar], classOf[builtin.Html], classOf[builtin.JavaScript],
    classOf[builtin.ShowOutput], classOf[builtin.ShowTypes], classOf[builtin.Truncation]
  )

  override def initialize(): Seq[Plugin] = {
    val given = parts
    val loaded = classes.map(found => loadPlugin(found.getName, found).get)
    for (plugin <- loaded; method <- plugin.getClass.getMethods if method.isAnnotationPresent(classOf[Init]))
      method.invoke(plugin, method.getParameterTypes.map(kind => given.find(kind.isInstance).get): _*)
    loaded
  }
}

/** What plugins that users load may ask for. Each takes Scala's reflection, which would take a third of a second of each start. */
class LateDependencies(parts: => Seq[AnyRef]) extends DependencyManager {
  private lazy val filled: Unit = parts.foreach(add(_))

  // how a PluginManager looks into this
  override def toSeq: Seq[Dependency[_ <: AnyRef]] = {
    filled
    super.toSeq
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
