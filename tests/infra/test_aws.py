"""The files in infra/aws: Ray's own launcher reads the cluster, and a simulated AWS enforces the policies."""

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count

from tests.conftest import ROOT

FOLDER = ROOT / "infra" / "aws"
REGION = "us-east-1"
ACCOUNT = "123456789012"
BUCKET = "sr-bucket"

Document = dict[str, Any]


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Simulate an empty account, whose keys cannot reach a real one."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray puts the key pair there
    with mock_aws():
        yield


class _Template(yaml.SafeLoader):
    """Reads a CloudFormation template as if the stack existed."""


def _resolve(name: str) -> str:
    """Return a value like that of a resource, parameter or attribute."""
    values = {
        "AWS::Partition": "aws",
        "AWS::Region": REGION,
        "AWS::AccountId": ACCOUNT,
        "Bucket": BUCKET,
        "Bucket.Arn": f"arn:aws:s3:::{BUCKET}",
        "Cluster": "sr",
    }
    return values.get(name, f"the-{name}")


def _tag(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> str:
    assert isinstance(node, yaml.ScalarNode)
    text = loader.construct_scalar(node)
    if suffix == "Sub":
        return re.sub(r"\$\{([\w.:]+)\}", lambda match: _resolve(match[1]), text)
    return _resolve(text)


_Template.add_multi_constructor("!", _tag)


def stack() -> Document:
    text = (FOLDER / "stack.yaml").read_text()
    assert not any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))  # CloudFormation refuses them
    loaded: Document = yaml.load(text, Loader=_Template)
    return loaded


def statements(name: str) -> list[Document]:
    found: list[Document] = stack()["Resources"][name]["Properties"]["PolicyDocument"]["Statement"]
    return found


def as_list(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def test_policies_allow_named_actions_on_named_resources() -> None:
    roles = {name: r["Properties"] for name, r in stack()["Resources"].items() if r["Type"] == "AWS::IAM::Role"}
    inline = [s for role in roles.values() for p in role.get("Policies", []) for s in p["PolicyDocument"]["Statement"]]
    for statement in [*statements("Data"), *statements("Launch"), *statements("Person"), *inline]:
        actions = as_list(statement["Action"])
        assert not [action for action in actions if "*" in action], statement["Sid"]
        assert "*" not in as_list(statement["Resource"]) or all(a.startswith("ec2:Describe") for a in actions)
        if set(actions) & {"iam:PassRole", "ec2:TerminateInstances", "ec2:CreateTags"}:
            assert statement["Condition"]["StringEquals"]
    assert roles["WorkerRole"]["ManagedPolicyArns"] == ["the-Data"]  # workers start no machines
    passed = [s["Resource"] for s in inline if s["Action"] == "iam:PassRole"]
    assert passed == ["the-WorkerRole.Arn"]


def test_the_network_is_open_to_ssh_of_given_addresses_alone() -> None:
    resources = stack()["Resources"]
    (ssh,) = resources["Nodes"]["Properties"]["SecurityGroupIngress"]
    assert (ssh["FromPort"], ssh["ToPort"], ssh["CidrIp"]) == (22, 22, "the-SshFrom")
    between = resources["NodesTalk"]["Properties"]
    assert between["SourceSecurityGroupId"] == between["GroupId"] == "the-Nodes.GroupId"
    allowed = re.compile(stack()["Parameters"]["SshFrom"]["AllowedPattern"])
    assert allowed.fullmatch("203.0.113.7/32")
    assert not allowed.fullmatch("0.0.0.0/0")


def test_the_bucket_is_private_and_keeps_runs() -> None:
    bucket = stack()["Resources"]["Bucket"]
    assert bucket["DeletionPolicy"] == bucket["UpdateReplacePolicy"] == "Retain"
    assert all(bucket["Properties"]["PublicAccessBlockConfiguration"].values())
    rules = bucket["Properties"]["LifecycleConfiguration"]["Rules"]
    assert {rule["Prefix"] for rule in rules if "ExpirationInDays" in rule} == {"cache/"}
    (deny,) = statements("BucketPolicy")
    assert deny["Effect"] == "Deny"
    assert deny["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


@pytest.mark.usefixtures("aws")
def test_nodes_read_and_write_what_the_pipeline_needs_and_nothing_else() -> None:
    admin, iam = boto3.client("s3"), boto3.client("iam")
    for bucket in (BUCKET, "other"):
        admin.create_bucket(Bucket=bucket)
    admin.put_object(Bucket=BUCKET, Key="sources/a.png", Body=b"image")
    iam.create_user(UserName="node")
    policy = {"Version": "2012-10-17", "Statement": statements("Data")}
    iam.put_user_policy(UserName="node", PolicyName="data", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="node")["AccessKey"]
    s3 = boto3.client("s3", aws_access_key_id=key["AccessKeyId"], aws_secret_access_key=key["SecretAccessKey"])

    def refused(call: Any, **arguments: Any) -> bool:
        with pytest.raises(ClientError) as failure:
            call(**arguments)
        return bool(failure.value.response["Error"]["Code"] in ("AccessDenied", "403"))

    def use() -> None:
        for place in ("runs/a", "cache/a", "mlflow/a"):
            s3.put_object(Bucket=BUCKET, Key=place, Body=b"1")
            assert s3.get_object(Bucket=BUCKET, Key=place)["Body"].read() == b"1"
            upload = s3.create_multipart_upload(Bucket=BUCKET, Key=place)["UploadId"]
            s3.upload_part(Bucket=BUCKET, Key=place, UploadId=upload, PartNumber=1, Body=b"2")
            assert s3.list_parts(Bucket=BUCKET, Key=place, UploadId=upload)["Parts"]
            s3.abort_multipart_upload(Bucket=BUCKET, Key=place, UploadId=upload)
            s3.delete_object(Bucket=BUCKET, Key=place)
        assert s3.list_objects_v2(Bucket=BUCKET, Prefix="sources/")["KeyCount"] == 1
        assert s3.get_object(Bucket=BUCKET, Key="sources/a.png")["Body"].read() == b"image"
        assert refused(s3.put_object, Bucket=BUCKET, Key="sources/b.png", Body=b"")
        assert refused(s3.delete_object, Bucket=BUCKET, Key="sources/a.png")
        assert refused(s3.put_object, Bucket=BUCKET, Key="elsewhere", Body=b"")
        assert refused(s3.list_objects_v2, Bucket="other")
        assert refused(s3.put_bucket_policy, Bucket=BUCKET, Policy="{}")
        assert refused(s3.delete_bucket, Bucket=BUCKET)

    set_initial_no_auth_action_count(0)(use)()  # with policies enforced


def fill(**values: str) -> Document:
    """Return cluster.yaml with its names filled in, as envsubst does."""
    text = re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], (FOLDER / "cluster.yaml").read_text())
    loaded: Document = yaml.safe_load(text)
    return loaded


@pytest.mark.usefixtures("aws")
def test_ray_starts_the_machines_with_what_the_stack_made() -> None:
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    ec2, iam = boto3.client("ec2"), boto3.client("iam")
    network = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName="nodes", Description="nodes", VpcId=network)["GroupId"]
    profiles = {
        name: iam.create_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Arn"]
        for name in ("HeadProfile", "WorkerProfile")
    }
    image = ec2.describe_images()["Images"][0]["ImageId"]
    groups = len(ec2.describe_security_groups()["SecurityGroups"])
    config = prepare_config(
        fill(AWS_REGION=REGION, Image=image, SecurityGroup=group, Bucket=BUCKET, Checkout=str(ROOT), **profiles)
    )
    validate_config(config)
    config = bootstrap_aws(config)
    # Ray made neither a group that is open to the world nor a role that may do everything.
    assert len(ec2.describe_security_groups()["SecurityGroups"]) == groups
    assert not iam.list_roles()["Roles"]
    types = config["available_node_types"]
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, kind in types.items():
        provider.create_node(kind["node_config"], {"ray-user-node-type": name}, 1)
        head = name == config["head_node_type"]
        assert kind["node_config"]["IamInstanceProfile"]["Arn"] == profiles["HeadProfile" if head else "WorkerProfile"]
        assert head or kind["min_workers"] == 0 < kind["max_workers"]
    machines = [m for r in ec2.describe_instances()["Reservations"] for m in r["Instances"]]
    assert len(machines) == len(types)
    for machine in machines:
        tags = {tag["Key"]: tag["Value"] for tag in machine["Tags"]}
        assert tags["ray-cluster-name"] == stack()["Parameters"]["Cluster"]["Default"]  # conditions of the role
        assert [group["GroupId"] for group in machine["SecurityGroups"]] == [group]
        head = tags["ray-user-node-type"] == "head"
        assert machine.get("InstanceLifecycle") == (None if head else "spot")
        assert types[tags["ray-user-node-type"]]["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def test_names_of_the_cluster_are_outputs_or_filled_in_by_the_page() -> None:
    names = set(re.findall(r"\$\{(\w+)\}", (FOLDER / "cluster.yaml").read_text()))
    page = (ROOT / "docs" / "guides" / "aws.md").read_text()
    (listed,) = re.findall(r"envsubst '([^']+)'", page)
    assert {name.lstrip("$") for name in listed.split()} == names
    others = names - set(stack()["Outputs"])
    assert others == {"AWS_REGION", "Checkout", "Image"}
    assert all(re.search(rf"\b{name}=", page) for name in others)


def test_commands_of_the_cluster_are_shell_and_hide_the_services() -> None:
    config = fill(**dict.fromkeys(re.findall(r"\$\{(\w+)\}", (FOLDER / "cluster.yaml").read_text()), "x"))
    for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        for command in config[key]:
            subprocess.run(["bash", "-n", "-c", command], check=True)
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    assert "--host 127.0.0.1" in head
    assert head.count("RAY_AUTH_MODE=token") == 1
    assert "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER=1" in head
    assert all("RAY_AUTH_MODE=token" in c for c in config["worker_start_ray_commands"] if c != "ray stop")
    assert "infra/secrets" in config["rsync_exclude"]


def test_an_announced_reclaim_drains_the_node(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    class Metadata(BaseHTTPRequestHandler):
        """Version 2 of the metadata service, which announces a reclaim at the second look."""

        def do_PUT(self) -> None:
            self.answer(200, "a-token")

        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("X-aws-ec2-metadata-token", "")))
            self.answer(404 if len(asked) == 1 else 200, '{"action": "terminate"}')

        def answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    # The first call fails, as when the head does not answer.
    (tmp_path / "ray").write_text('#!/bin/sh\necho "$@" >> "$0.log"\n[ "$(wc -l < "$0.log")" -gt 1 ]\n')
    (tmp_path / "ray").chmod(0o755)
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environ = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "METADATA": f"http://127.0.0.1:{server.server_port}/latest",
            "EVERY_S": "0.1",
        }
        subprocess.run([FOLDER / "spot-watch"], env=environ, check=True, timeout=60)
        server.shutdown()
    assert asked == [("/latest/meta-data/spot/instance-action", "a-token")] * 3
    first, second = (tmp_path / "ray.log").read_text().splitlines()
    assert first == second
    assert first.startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message")
    assert first.endswith("--deadline-remaining-seconds 100")
