#!/usr/bin/env bash
# What Spark's driver starts as an executor: it creates a pod of this image with the argument 'executor' and what else there
# is to know in variables (those of Spark's own images). Any other command is run as it is.
set -euo pipefail

if [[ ${1:-} != executor ]]; then
  exec "$@"
fi

# JVM options arrive one a variable, numbered from 0
options=()
for ((number = 0; ; number++)); do
  name=SPARK_JAVA_OPT_$number
  [[ -n ${!name+set} ]] || break
  options+=("${!name}")
done

# the archive of classes fits if the class path begins as it did when it was made
archive=$SPARK_HOME/elastic-spark.jsa
[[ -f $archive ]] && options+=("-XX:SharedArchiveFile=$archive" -Xlog:disable -Xlog:all=error:stderr)
jars=$(LC_ALL=C; printf '%s:' "$SPARK_HOME"/jars/*.jar)

# Tini, because Python workers whose parent is gone become this process's children; and a signal has to reach Java.
exec tini -s -- "$JAVA_HOME/bin/java" "${options[@]}" "-Xmx$SPARK_EXECUTOR_MEMORY" \
  -cp "${SPARK_CLASSPATH:+$SPARK_CLASSPATH:}${jars%:}" \
  org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend \
  --driver-url "$SPARK_DRIVER_URL" \
  --executor-id "$SPARK_EXECUTOR_ID" \
  --cores "$SPARK_EXECUTOR_CORES" \
  --app-id "$SPARK_APPLICATION_ID" \
  --hostname "$SPARK_EXECUTOR_POD_IP" \
  --resourceProfileId "$SPARK_RESOURCE_PROFILE_ID" \
  --podName "$SPARK_EXECUTOR_POD_NAME"
