package org.apache.toree.elastic

import org.apache.hadoop.security.UserGroupInformation
import org.apache.spark.deploy.SparkSubmit

/** The JVM's main class: SparkSubmit, which loads packages and jars and then calls Main. */
object Start {
  def main(arguments: Array[String]): Unit = {
    // a profile may name any uid, and Hadoop knows only those with a name
    if (System.getProperty("user.name") == "?") UserGroupInformation.setLoginUser(UserGroupInformation.createRemoteUser("kernel"))
    SparkSubmit.main(arguments)
  }
}
