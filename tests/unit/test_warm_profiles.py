"""What a profile may say of what is kept warm, and at which hours that is."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from elastic_kernels.errors import ProfileError
from elastic_kernels.kernelspecs import variants
from elastic_kernels.profiles import Profile, from_kernelspec, parse_profile, to_kernelspec
from elastic_kernels.warm import schedule

MONDAY = "2026-11-23"


def profile(**fields: Any) -> Profile:
    return parse_profile({"name": "small", "image": "example/kernel:1", **fields}, "profiles.small")


def test_a_number_is_so_many_kernels_and_a_kernelspec_keeps_it() -> None:
    assert profile(warm=3) == profile(warm={"kernels": 3})
    whole = profile(warm={"kernels": 2, "capacity": 1, "when": ["Mon-Fri 08:00-19:00", "Sat"], "time_zone": "Europe/Berlin"})
    assert from_kernelspec("small", to_kernelspec(whole)).warm == whole.warm


def test_what_waits_is_of_the_profiles_own_image() -> None:
    own, other = variants(profile(warm=3, named_images={"Torch": "example/torch:1"}))
    assert own.warm == profile(warm=3).warm
    assert other.warm is None


@pytest.mark.parametrize(
    "fields",
    [
        {"warm": 1, "images": ["example/*"]},
        {"warm": 1, "users": ["ana"], "service_account": "reader", "client_environment": ["PYTHONPATH"]},
        {
            "warm": 1,
            "volumes": [{"name": "data", "mount_path": "/data", "claim": "data"}],
            "environment": {"PLACE": "/x/$(KERNEL_USERNAME)"},
        },
        {"warm": {"capacity": 1}, "home": True},
        {"warm": {"capacity": 1}, "command": ["kernel", "{connection_file}"]},
        {"warm": 0, "home": True},
    ],
    ids=str,
)
def test_what_may_be_kept_warm(fields: dict[str, Any]) -> None:
    assert profile(**fields).warm is not None


SPARK = {"executors": {"max": 1}}
VOLUME = {"name": "own", "mount_path": "/own", "claim": "all"}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"warm": -1}, "profiles.small.warm.kernels"),
        ({"warm": True}, "profiles.small.warm"),
        ({"warm": {"pods": 1}}, "profiles.small.warm.pods: is not a field"),
        (
            {"warm": {"kernels": 1, "when": "Mon-Fry"}},
            "profiles.small.warm.when.0: 'Mon-Fry' is not a time such as 'Mon-Fri 08:00-19:00': 'Fry' is no day",
        ),
        ({"warm": {"kernels": 1, "when": "08:00-25:00"}}, "'25:00' is no time of day"),
        ({"warm": {"kernels": 1, "when": "08:00-08:00"}}, "is no time at all"),
        ({"warm": {"kernels": 1, "when": ""}}, "is not a time such as"),
        ({"warm": {"kernels": 1, "when": "Mon", "time_zone": "Mars/Olympus"}}, "'Mars/Olympus' is not a time zone"),
        ({"warm": {"kernels": 1, "time_zone": "Europe/Berlin"}}, "'when' goes by, which is missing"),
        ({"warm": 1, "home": True}, "is the same for everybody, and its home volume is not; warm.capacity"),
        ({"warm": 1, "volumes": [{**VOLUME, "sub_path": "{username}"}]}, "the volume 'own' is not"),
        ({"warm": 1, "volumes": [{**VOLUME, "sub_path": "{escaped_username}"}]}, "the volume 'own' is not"),
        ({"warm": 1, "volumes": [{**VOLUME, "sub_path": "{group}", "mount_path": "/own/{group}"}]}, "the volume 'own' is not"),
        ({"warm": 1, "volumes": [{**VOLUME, "groups": ["ops"]}]}, "the volume 'own' is not"),
        ({"warm": 1, "environment": {"PYTHONPATH": "/x/$(KERNEL_USERNAME)"}}, "its variable PYTHONPATH is not"),
        (
            {"warm": 1, "spark": SPARK, "command": ["python", "{launchers}/spark.py", "{connection_file}"]},
            "kernels with Spark are not kept warm",
        ),
        ({"warm": 1, "command": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]}, "our launcher of Python waits"),
        ({"warm": 1, "command": ["start", "{response_address}"]}, "our launcher of Python waits"),
    ],
    ids=str,
)
def test_what_may_not(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ProfileError, match=r"^profiles\.small") as caught:
        profile(**fields)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("when", "open_", "closed"),
    [
        ("Mon-Fri 08:00-19:00", ["23 08:00", "27 18:59"], ["23 07:59", "27 19:00", "28 12:00", "29 12:00"]),
        ("fri-mon", ["27 00:00", "28 12:00", "29 12:00", "23 23:59"], ["24 00:00", "26 23:59"]),
        ("Mon,Wed-Thu 9:00-10:00", ["23 09:30", "25 09:30", "26 09:30"], ["24 09:30", "27 09:30"]),
        ("22:00-06:00", ["23 22:00", "24 05:59", "29 23:00", "23 00:00"], ["23 06:00", "23 21:59"]),
        ("Sun 22:00-06:00", ["29 22:00", "23 05:59"], ["22 21:59", "23 22:00", "29 05:59"]),
        ("Mon 08:00-24:00", ["23 23:59"], ["24 00:00"]),
    ],
)  # fmt: skip
def test_hours(when: str, open_: list[str], closed: list[str]) -> None:
    window = schedule.parse(when)
    moments = {text: datetime.fromisoformat(f"2026-11-{text}") for text in (*open_, *closed)}
    assert [text for text, moment in moments.items() if schedule.is_open([window], moment)] == open_


def test_the_clock_is_that_of_the_time_zone() -> None:
    warm = profile(warm={"kernels": 1, "when": "Mon 08:00-09:00", "time_zone": "America/New_York"}).warm
    assert warm is not None
    hours = [hour for hour in range(24) if warm.is_wanted(datetime.fromisoformat(f"{MONDAY} {hour:02}:30").replace(tzinfo=timezone.utc))]
    assert hours == [13]
    always = profile(warm=1).warm
    assert always is not None
    assert always.is_wanted(datetime.now(timezone.utc))
