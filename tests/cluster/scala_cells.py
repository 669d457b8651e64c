"""Cells in Scala, good and bad, and what each must be answered. They run in this order in one kernel."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """What is run, and what must come of it: a status of ok with these outputs, or an error of this name."""

    code: str
    shows: str | None = ""
    """All that it prints, displays and returns, as plain text; None is not looked at."""
    error: str = ""
    """The error's name, or empty for success."""
    says: str = ""
    """A part of the error's message."""
    trace: str = ""
    """A part of its traceback."""
    types: str | None = None
    """What is typed when the cell asks."""
    kind: str = ""
    """The kind of failure that it stands for, of cells that need no other before them."""

    @property
    def title(self) -> str:
        return (self.code.strip().splitlines() or ["empty"])[0][:50]


def ok(code: str, shows: str | None = "", types: str | None = None) -> Cell:
    return Cell(code, shows, types=types)


def bad(code: str, error: str, says: str, trace: str = "", shows: str | None = "", kind: str = "") -> Cell:
    return Cell(code, shows, error, says, trace, kind=kind)


_RUNTIME = "java.lang.RuntimeException"
_DEEP = "+".join(["1"] * 20000)

CELLS = [
    # what succeeds, once
    ok("1 + 1", "2"),
    ok("", ""),
    ok("   \n\n", ""),
    ok("// nothing but a comment"),
    ok("/* nor\n   this */"),
    ok("val x = 3\nx * 2", "x = 36"),
    ok('println("héllo ☃")', "héllo ☃\n"),
    ok("println()", "\n"),
    ok('Console.err.println("to stderr")', "to stderr\n"),
    ok('System.out.println("from Java")', "from Java\n"),
    ok('"two\\nlines"', "two\nlines"),
    ok("def twice(i: Int): Int = i * 2", "twice: (i: Int)Int"),
    ok("twice(21)", "42"),
    ok("case class Point(x: Int, y: Int)", "defined class Point"),
    ok("Seq(Point(1, 2)).map(_.x).sum", "1"),
    ok("import scala.util.Try"),
    ok('Try(sys.error("caught")).isFailure', "true"),
    ok("var calls = 0", "calls = 0"),
    ok("calls += 1"),
    ok("calls", "1"),
    ok("null: String", "null"),
    ok('@deprecated("", "") def old = 1\nval kept = twice(1)', "old: Int\nkept = 2"),
    ok("scala.io.StdIn.readLine()", "typed", types="typed"),
    ok('new Thread(() => println("from a thread")) { start(); join() }; ()', "from a thread\n"),
    # code that does not get as far as running
    bad("nope", "CompileError", "not found: value nope (cell 25:1)", "nope\n^", kind="does not compile"),
    bad("val one = 1\nval two: String = one\nval three = 3", "CompileError", "type mismatch; (cell 26:2)", "found   : Int"),
    bad("twice(1", "SyntaxError", "ends too early"),
    bad('val open = """never closed', "SyntaxError", "ends too early", kind="incomplete"),
    bad("class {", "SyntaxError", "identifier expected"),
    bad("val = 3", "SyntaxError", "illegal start of simple pattern"),
    bad(f"val deep = {_DEEP}", "CompilerCrash", "nested too deeply", kind="the compiler crashes"),
    ok("1 + 2", "3"),
    # code that throws
    bad('throw new RuntimeException("boom")', _RUNTIME, "boom", "at (cell 33:1)", kind="throws"),
    bad(
        "def divide(i: Int): Int = {\n  1 / i\n}\nprintln(1)\ndivide(0)",
        "java.lang.ArithmeticException",
        "/ by zero",
        "at divide(cell 34:2)\n    at (cell 34:5)",
        "1\n",
    ),
    bad("throw new RuntimeException(null: String)", _RUNTIME, "no message", kind="no message"),
    bad(
        'class Mute extends Exception { override def toString = ???; override def getMessage = sys.error("") }\nthrow new Mute',
        "Mute",
        "asking for it threw java.lang.RuntimeException",
        "at (cell 36:2)",
        kind="a message that throws",
    ),
    bad(
        'throw new RuntimeException("outer", new IllegalStateException("inner"))',
        _RUNTIME,
        "outer",
        "Caused by: java.lang.IllegalStateException: inner",
    ),
    bad('class Unshown { override def toString = sys.error("unshown") }\nnew Unshown', _RUNTIME, "unshown", kind="a result that throws"),
    bad(
        "def forever(i: Int): Int = 1 + forever(i + 1)\nforever(0)",
        "java.lang.StackOverflowError",
        "no message",
        "at forever(cell 39:1)",
        kind="stack overflow",
    ),
    bad("sys.exit(3)", "java.lang.SecurityException", "Not allowed to invoke System.exit", kind="exit"),
    bad("Runtime.getRuntime.halt(3)", "java.lang.SecurityException", "Not allowed to invoke System.exit"),
    bad("Array.fill(64)(new Array[Long](1 << 28)).length", "java.lang.OutOfMemoryError", "Java heap space", kind="out of memory"),
    bad('assert(1 > 2, "must hold")', "java.lang.AssertionError", "must hold"),
    bad("???", "scala.NotImplementedError", "an implementation is missing"),
    bad("scala.util.control.Breaks.break()", "scala.util.control.BreakControl", "no message"),
    bad("(1: Any) match { case s: String => s }", "scala.MatchError", "1 (of class java.lang.Integer)"),
    bad('lazy val broken: Int = sys.error("late")\nbroken', _RUNTIME, "late"),
    bad("object Broken { val x = 1 / 0 }\nBroken.x", "java.lang.ArithmeticException", "/ by zero", "at Broken"),
    bad('Class.forName("no.such.Class")', "java.lang.ClassNotFoundException", "no.such.Class"),
    bad(
        'import scala.concurrent._\nAwait.result(Future.failed(new RuntimeException("async")), duration.Duration.Inf)',
        _RUNTIME,
        "async",
    ),
    bad("throw new ThreadDeath", "java.lang.ThreadDeath", "no message"),
    bad("scala.io.StdIn.readLine()", "StdinNotAvailable", "nobody is there to give it"),
    ok("twice(x)", "6"),
    # Spark
    ok("spark.range(10).count()", "10"),
    ok("sc.parallelize(Seq(Point(1, 2), Point(3, 4))).map(_.y).sum()", "6.0"),
    ok("Seq(1, 2, 3).toDS.map(twice(_)).collect().toSeq", "WrappedArray(2, 4, 6)"),
    ok('spark.range(3).toDF("n").createOrReplaceTempView("numbers")'),
    bad(
        "sc.parallelize(Seq(1, 0)).map(10 / _).collect()",
        "org.apache.spark.SparkException",
        "java.lang.ArithmeticException: / by zero",
        "(cell 58:1)",
        kind="a task of Spark",
    ),
    bad('spark.sql("select nope from numbers")', "org.apache.spark.sql.catalyst.ExtendedAnalysisException", "nope"),
    bad('spark.read.parquet("/no/such/file")', "org.apache.spark.sql.AnalysisException", "/no/such/file"),
    # magics
    ok("%%sql\nselect sum(n) as total from numbers", "+-----+\n|total|\n+-----+\n|    3|\n+-----+\n\n"),
    ok("%%sql\nselect ${x} as x", "+---+\n|  x|\n+---+\n|  3|\n+---+\n\n"),
    bad("%%sql\nselect nope from numbers", "org.apache.spark.sql.catalyst.ExtendedAnalysisException", "nope"),
    bad("%%sql\nselekt 1", "org.apache.spark.sql.catalyst.parser.ParseException", "Syntax error", kind="a magic for the cell"),
    ok('%%sql\ncreate table written (n int) using parquet location "/tmp/written"'),
    ok("%%sql\ninsert into written values (7)"),
    ok('spark.table("written").count()', "1"),
    ok('%%dataframe --output=csv\nspark.range(2).toDF("n")', "n\n0\n1"),
    bad("%%dataframe\n1 + 1", "MagicError", "is no DataFrame but a java.lang.Integer"),
    bad("%%dataframe\nnope", "CompileError", "not found: value nope"),
    ok("%truncation on", "Output WILL be truncated.\n"),
    bad("%AddJar", "MagicError", "write: %AddJar <jar_url>"),
    bad("%AddJar file:/no/such.jar", "java.io.FileNotFoundException", "/no/such.jar", shows=None),
    ok(
        'import java.nio.file._\nval made = Files.write(Paths.get("/tmp/Made.scala"), "package org.apache.made; object Made".getBytes)\n'
        'scala.tools.nsc.Main.process(Array("-usejavacp", "-d", "/tmp/made.jar", made.toString))',
        "made = /tmp/Made.scalatrue",
    ),
    ok("%AddJar file:/tmp/made.jar", None),
    ok("org.apache.made.Made.getClass.getSimpleName + twice(x)", "Made$6"),
    bad("%AddDeps no.such thing 1.0", "DependencyNotFound", "no.such:thing:1.0", shows=None, kind="a magic"),
    bad("%nomagic", "MagicNotFound", "There is no magic %nomagic here; there are %adddeps, %addjar"),
    bad("%%nomagic\n1", "MagicNotFound", "There is no magic %%nomagic here; there are %%scala, %%sql"),
    ok("val before = 1\n%truncation on\nbefore + 1", "before = 1Output WILL be truncated.\n2"),
    bad(
        "val fine = 1\n%truncation on\nnope",
        "CompileError",
        "not found: value nope (cell 81:3)",
        shows="fine = 1Output WILL be truncated.\n",
    ),
    ok('val text = """\n%not a magic"""\ntext.length', 'text = \n"\n%not a magic"13'),
    # a class and its Dataset
    ok("case class Row1(n: Int)\nSeq(Row1(1), Row1(2)).toDS.map(row => Row1(row.n + 1)).collect().map(_.n).sum", "defined class Row15"),
    ok(
        "case class Row2(n: Int)\nSeq(Row2(1), Row2(3)).toDS.groupByKey(_.n % 2).mapGroups((_, rows) => rows.map(_.n).sum).collect().sum",
        "defined class Row24",
    ),
    bad("case class Row3(n: Int)\n\nval wrong: Row3 = 1\nwrong", "CompileError", "type mismatch; (cell 85:3)", "val wrong: Row3 = 1"),
    bad("case class Row4(n: Int)\nval fourth = Row4(4)\n\nfourth.n / 0", "java.lang.ArithmeticException", "/ by zero", "at (cell 86:4)"),
]
