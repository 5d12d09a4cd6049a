"""Compare exported weights with the networks of other packages: `python -m ... TOOL PACKAGES OWN EXPORTED`.

PACKAGES is a folder that has the other packages. The code of the networks is theirs. What they import besides, such as
registries and torchvision, is replaced by stand-ins, because the networks do not use it. Prints the largest difference
from this project's network on a random image with values in [0, 1].
"""

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sr_model.networks import from_weights
from sr_model.networks.edsr import EDSR


def stand_in(name: str, **members: Any) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(members, __path__=[])
    sys.modules[name] = module


def run_file(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Registry:
    def register(self, *_: Any) -> Callable[[Any], Any]:
        return lambda registered: registered

    register_module = register


def spandrel(packages: Path, net: EDSR, file: Path) -> Callable[[Tensor], Tensor]:
    stand_in("torchvision")
    stand_in("torchvision.transforms")
    stand_in("torchvision.transforms.functional", InterpolationMode=None, rotate=None, normalize=None)
    sys.path.insert(0, str(packages))
    loader: Any = importlib.import_module("spandrel").ModelLoader("cpu")
    found = loader.load_from_file(str(file))
    assert (found.architecture.id, found.scale, found.input_channels) == ("RCAN", net.scale, 3)
    return lambda x: found.model(x.clone())


def basicsr(packages: Path, net: EDSR, file: Path) -> Callable[[Tensor], Tensor]:
    for name in ("basicsr", "basicsr.archs", "basicsr.ops"):
        stand_in(name)
    stand_in("torchvision", __version__="0.20.0")
    stand_in("basicsr.ops.dcn", ModulatedDeformConvPack=object, modulated_deform_conv=None)
    stand_in("basicsr.utils", get_root_logger=None)
    stand_in("basicsr.utils.registry", ARCH_REGISTRY=Registry())
    run_file("basicsr.archs.arch_util", packages / "basicsr/archs/arch_util.py")
    theirs = run_file("basicsr.archs.edsr_arch", packages / "basicsr/archs/edsr_arch.py").EDSR(
        3, 3, net.conv_first.out_channels, len(net.body), net.scale, img_range=1, rgb_mean=(0, 0, 0)
    )
    theirs.load_state_dict(load_file(file))
    return theirs  # type: ignore[no-any-return]


def mmagic(packages: Path, net: EDSR, file: Path) -> Callable[[Tensor], Tensor]:
    for name in ("mmagic", "mmagic.models", "mmengine"):
        stand_in(name)
    stand_in("mmengine.model", BaseModule=nn.Module)
    stand_in("mmagic.registry", MODELS=Registry())
    stand_in(
        "mmagic.models.utils",
        default_init_weights=lambda *_: None,
        make_layer=lambda block, count, **options: nn.Sequential(*(block(**options) for _ in range(count))),
    )
    stand_in("mmagic.models.archs")
    for name, member in (("sr_backbone", "ResidualBlockNoBN"), ("upsample", "PixelShufflePack")):
        module = run_file(f"mmagic.models.archs.{name}", packages / f"mmagic/models/archs/{name}.py")
        setattr(sys.modules["mmagic.models.archs"], member, getattr(module, member))
    theirs = run_file("mmagic.models.editors.edsr", packages / "mmagic/models/editors/edsr/edsr_net.py").EDSRNet(
        3, 3, net.conv_first.out_channels, len(net.body), net.scale, rgb_mean=[0, 0, 0]
    )
    theirs.load_state_dict(load_file(file))
    return theirs  # type: ignore[no-any-return]


def load_super_image(packages: Path, net: EDSR, file: Path) -> Any:
    for name in ("super_image", "super_image.models", "super_image.models.edsr", "super_image.data"):
        stand_in(name)
    stand_in("super_image.data.datasets", DIV2K_RGB_MEAN=(0.4488, 0.4371, 0.4040), DIV2K_RGB_STD=(1.0, 1.0, 1.0))
    names = ("CONFIG_NAME", "WEIGHTS_NAME", "WEIGHTS_NAME_SCALE", "is_remote_url", "get_model_url", "get_model_path")
    stand_in("super_image.file_utils", **dict.fromkeys(names))
    for name in ("configuration_utils", "modeling_utils"):
        run_file(f"super_image.{name}", packages / f"super_image/{name}.py")
    folder = packages / "super_image/models/edsr"
    config = run_file("super_image.models.edsr.configuration_edsr", folder / "configuration_edsr.py").EdsrConfig(
        scale=net.scale, n_resblocks=len(net.body), n_feats=net.conv_first.out_channels
    )
    theirs = run_file("super_image.models.edsr.modeling_edsr", folder / "modeling_edsr.py").EdsrModel(config)
    theirs.load_state_dict(load_file(file))
    return theirs


def super_image(packages: Path, net: EDSR, file: Path) -> Callable[[Tensor], Tensor]:
    return load_super_image(packages, net, file)  # type: ignore[no-any-return]


def edsr_pytorch(packages: Path, net: EDSR, file: Path) -> Callable[[Tensor], Tensor]:
    """super-image copied the modules of EDSR-PyTorch, which also applies the two shifts, to values up to 255."""
    theirs = load_super_image(packages, net, file)
    return lambda x: theirs.add_mean(theirs(theirs.sub_mean(255 * x))) / 255


@torch.no_grad()
def main(tool: str, packages: str, own: str, exported: str) -> None:
    net = from_weights(load_file(own))
    assert isinstance(net, EDSR)
    theirs = globals()[tool](Path(packages), net, Path(exported))
    lr = torch.rand(1, 3, 20, 17)
    sr = theirs(lr)
    assert sr.shape == (1, 3, 20 * net.scale, 17 * net.scale)
    print((sr - net(lr)).abs().max().item())


if __name__ == "__main__":
    main(*sys.argv[1:])
