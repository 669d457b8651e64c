"""What is mounted, as tables: homes, groups, users' folders, packages; and which images a client may name."""

from __future__ import annotations

from typing import Any

import pytest

from elastic_kernels import mounts, nodes, words
from elastic_kernels.errors import ConfigurationError, ElasticKernelsError, ProfileError
from elastic_kernels.homes import SCRATCH, Home
from elastic_kernels.kernelspecs import install, variants
from elastic_kernels.mounts import Mount
from elastic_kernels.pod import Launch, Spot, build_pod
from elastic_kernels.profiles import Profile, parse_profile
from elastic_kernels.record import Record
from elastic_kernels.request import KernelRequest, parse_request
from elastic_kernels.storage import Volume

EFS = {"persistentVolumeClaim": {"claimName": "efs"}}
TEAMS = {"name": "teams", "mount_path": "/teams/{group}", "claim": "efs", "sub_path": "teams/{group}"}
OWN = {"name": "own", "mount_path": "/own", "claim": "efs", "sub_path": "users/{username}", "make_sub_path": True}
LAUNCH = Launch(token="a1b2c3", ports=0, record_uid="u")


def profile(**fields: Any) -> Profile:
    return parse_profile({"name": "p", "image": "example/kernel:1", **fields}, "profiles.p")


def record(groups: tuple[str, ...] = ()) -> Record:
    return Record("0a1b2c3d-0000-4000-8000-0123456789ab", "p", "Ana", "ns", "blue", key="k", token="t", slot="1", groups=groups)


@pytest.mark.parametrize(
    ("fields", "groups", "home", "expected"),
    [
        ({"home": True}, (), None, []),
        ({"home": True}, (), SCRATCH, [Mount("home", {"emptyDir": {}}, "/home/jovyan")]),
        (
            {"home": {"sub_path": "{username}", "make_sub_path": True}},
            (),
            Home("efs"),
            [Mount("home", EFS, "/home/jovyan", "ana---79db9d89", make=True)],
        ),
        # a claim that is there twice is one volume
        ({"home": True, "volumes": [OWN]}, (), Home("efs"), [Mount("home", EFS, "/home/jovyan"), Mount("home", EFS, "/own", "users/ana---79db9d89", make=True)]),
        ({"volumes": [TEAMS]}, (), None, []),
        ({"volumes": [TEAMS]}, ("ml", "A b"), None, [Mount("teams", EFS, "/teams/ml", "teams/ml"), Mount("teams", EFS, "/teams/a-b---4c9d3a1b", "teams/a-b---4c9d3a1b")]),
        ({"volumes": [{**TEAMS, "groups": ["ml"]}]}, ("ml", "ops"), None, [Mount("teams", EFS, "/teams/ml", "teams/ml")]),
        ({"volumes": [{"name": "v", "mount_path": "/v", "claim": "efs", "groups": ["ml"], "read_only": True}]}, ("ml",), None, [Mount("v", EFS, "/v", read_only=True)]),
        ({"volumes": [{"name": "v", "mount_path": "/v", "claim": "efs", "groups": ["ml"]}]}, ("ops",), None, []),
    ],
)  # fmt: skip
def test_what_is_mounted(fields: dict[str, Any], groups: tuple[str, ...], home: Home | None, expected: list[Mount]) -> None:
    found = mounts.mounts(profile(**fields), "Ana", groups, home)
    assert [_unhashed(mount) for mount in found] == [_unhashed(mount) for mount in expected]


def _unhashed(mount: Mount) -> tuple[Any, ...]:
    """Leave out what tests/unit/test_homes.py compares with kubespawner's own."""
    return mount.name, mount.source, mount.path.partition("---")[0], mount.sub_path.partition("---")[0], mount.read_only, mount.make


@pytest.mark.parametrize(
    ("fields", "source"),
    [
        ({"claim": "efs"}, EFS),
        ({"nfs": {"server": "files.example.com", "path": "/a/"}}, {"nfs": {"server": "files.example.com", "path": "/a"}}),
        (
            {"efs": {"file_system": "fs-0123456789abcdef0", "region": "eu-west-1"}},
            {"nfs": {"server": "fs-0123456789abcdef0.efs.eu-west-1.amazonaws.com", "path": "/"}},
        ),
        ({"source": {"emptyDir": {}}}, {"emptyDir": {}}),
    ],
)
def test_what_a_volume_is(fields: dict[str, Any], source: dict[str, Any]) -> None:
    assert Volume(name="v", mount_path="/v", **fields).in_kubernetes() == source


@pytest.mark.parametrize(
    ("fields", "clause"),
    [
        ({"volumes": [{"name": "v", "mount_path": "/v"}]}, "one of claim, nfs, efs and source says what the volume is, not none"),
        ({"volumes": [{"name": "v", "mount_path": "/v", "claim": "a", "nfs": {"server": "b"}}]}, "what the volume is, not claim and nfs"),
        ({"volumes": [{**TEAMS, "mount_path": "/teams"}]}, "must both have {group} in them, or neither"),
        ({"volumes": [{**TEAMS, "mount_path": "/{team}/{group}"}]}, "{team} is not known here"),
        ({"volumes": [{**OWN, "sub_path": ""}]}, "make_sub_path needs a sub_path"),
        ({"volumes": [{"name": "v", "mount_path": "/v", "efs": {"file_system": "x", "region": "eu-west-1"}}]}, "'x' is not the id of a file system"),
        ({"home": {"sub_path": "{group}"}}, "a home is a user's, so that {group} stands for nothing here"),
        ({"packages": True}, "packages are kept on the home volume: give the profile one, or give packages.path"),
        ({"packages": {"path": "/shared"}, "volumes": [{"name": "s", "mount_path": "/shared", "claim": "efs"}]}, "'/shared' is not on a volume of the user's own"),
        ({"packages": {"path": "/own"}, "volumes": [{**OWN, "read_only": True}]}, "'/own' is not on a volume of the user's own"),
        ({"packages": True, "home": True, "command": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]}, "the command needs {launcher}"),
        ({"named_images": {"": "a"}}, "should have at least 1 character"),
    ],
)  # fmt: skip
def test_mistakes(fields: dict[str, Any], clause: str) -> None:
    with pytest.raises(ProfileError) as error:
        profile(**fields)
    assert clause in str(error.value)


def test_a_pod_with_all_of_it() -> None:
    given = profile(home=True, packages={"team": ["/teams/ml/site"]}, volumes=[OWN, TEAMS], gpu=1, memory="1Gi", environment={"A": "b"})
    launch = Launch(token="a1b2c3", ports=0, record_uid="u", home=Home("claim-ana"))
    # an image of the user's choice does not get to run as root
    pod = build_pod(given, record(("ml",)), KernelRequest(image="somebody/else:2", timeout=1), launch, Spot("a=b", "a=b:NoSchedule"))
    (kernel,), (folders,) = pod["spec"]["containers"], pod["spec"]["initContainers"]
    environment = {item["name"]: item.get("value") for item in kernel["env"]}
    assert environment["HOME"] == "/home/jovyan" == kernel["workingDir"]
    assert environment["KERNEL_PACKAGES"].startswith("/home/jovyan/.elastic-kernels/packages/somebody-else-2--")
    assert environment["KERNEL_TEAM_PACKAGES"] == "/teams/ml/site"
    assert [mount["mountPath"] for mount in kernel["volumeMounts"][1:]] == ["/home/jovyan", "/own", "/teams/ml"]
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["record", "home", "own"]
    assert (kernel["image"], folders["image"]) == ("somebody/else:2", "example/kernel:1")
    assert folders["resources"] == {"requests": {"memory": "1Gi"}, "limits": {"memory": "1Gi"}}
    assert folders["volumeMounts"] == [{"name": "own", "mountPath": "/volumes/own"}]
    assert folders["command"][4].startswith("/volumes/own/users/ana---")
    # without a home there is none to start in
    bare = build_pod(given, record(), KernelRequest(image="i", timeout=1), LAUNCH, Spot("a=b", "a=b:NoSchedule"))
    assert "workingDir" not in bare["spec"]["containers"][0]


ZONES = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}]


def _affine(*values: str) -> dict[str, Any]:
    terms = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": [value]}]} for value in values]
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}


@pytest.mark.parametrize(
    ("spec", "terms", "found"),
    [
        ({}, ZONES, None),
        ({"nodeSelector": {"zone": "a"}}, ZONES, None),
        ({"nodeSelector": {"zone": "c"}}, ZONES, ("zone", "a or b")),
        ({"nodeSelector": {"zone": "c"}}, [*ZONES, {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}], None),
        ({"nodeSelector": {"zone": "c"}}, [], None),
        (_affine("c", "d"), ZONES, ("zone", "a or b")),
        (_affine("c", "b"), ZONES, None),
    ],
)
def test_places_that_exclude_one_another(spec: dict[str, Any], terms: list[Any], found: tuple[str, str] | None) -> None:
    assert nodes.contradiction({"spec": spec}, terms) == found


@pytest.mark.parametrize(
    ("wanted", "image"),
    [
        ({}, "example/kernel:1"),
        ({"KERNEL_IMAGE": ""}, "example/kernel:1"),
        ({"KERNEL_IMAGE": "PyTorch 2"}, "example/torch:2"),
        ({"KERNEL_IMAGE": "example/torch:2"}, "example/torch:2"),
        ({"KERNEL_IMAGE": "example/team/any:3"}, "example/team/any:3"),
        ({"KERNEL_IMAGE": "example/other/any:3"}, "The image 'example/other/any:3' is not one that 'p' allows; ask for 'PyTorch 2' or one that matches example/team/*:*."),
        ({"KERNEL_IMAGE": "example/team/a b:3"}, "KERNEL_IMAGE is not the name of an image, such as registry.example.com/team/image:1."),
        ({"KERNEL_IMAGE": "example/team/a:3\n"}, "KERNEL_IMAGE is not the name of an image, such as registry.example.com/team/image:1."),
        ({"KERNEL_IMAGE": 7}, "KERNEL_IMAGE is not the name of an image, such as registry.example.com/team/image:1."),
    ],
)  # fmt: skip
def test_images_on_demand(wanted: dict[str, Any], image: str) -> None:
    given = profile(images=["example/team/*:*"], named_images={"PyTorch 2": "example/torch:2"})
    try:
        assert parse_request(wanted, given).image == image
    except ElasticKernelsError as error:
        assert str(error) == image  # noqa: PT017  (the table holds either)
    # where nothing is open, what a client wants is dropped
    assert parse_request({"KERNEL_IMAGE": "x/y:1"}, profile()).image == "example/kernel:1"


def test_a_named_image_is_a_card_of_its_own(tmp_path: Any) -> None:
    given = profile(display_name="Python", named_images={"PyTorch 2": "example/torch:2", "plain": "example/plain:1"})
    found = [(each.name.partition("--")[0], each.display_name, each.image) for each in variants(given)]
    assert found == [
        ("p", "Python", "example/kernel:1"),
        ("p-pytorch-2", "Python | PyTorch 2", "example/torch:2"),
        ("p-plain", "Python | plain", "example/plain:1"),
    ]
    install([given], tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    taken = parse_profile({"name": "p-plain", "image": "i"}, "profiles.p-plain")
    with pytest.raises(ConfigurationError, match="Two kernelspecs would be named 'p-plain'"):
        install([given, taken], tmp_path)


def test_a_command_that_is_not_there() -> None:
    message = 'exec: "python": executable file not found in $PATH: unknown'
    container: dict[str, Any] = {"image": "i", "volumeMounts": [{"mountPath": "/var/run/elastic-kernels"}]}
    assert words.start(message, container) == "its image 'i' has no 'python'"
    container["volumeMounts"].append({"mountPath": "/opt/x"})
    assert words.start(message, container) == "its image 'i' has no 'python', or a volume covers it (there is one at /opt/x)"
    assert words.start("permission denied", container) == "its command cannot be run: permission denied"
