"""ResNets of basic blocks, and a count of FLOPs by the rules of the published Sparse-IFT code."""

import torch
import torch.nn.functional as F
from torch import nn


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.shortcut = nn.Identity() if same else nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """`imagenet`: a 7×7 stem of stride 2 and pooling modules; else a 3×3 stem and functional pooling."""

    def __init__(self, blocks, width=64, classes=100, imagenet=False):
        super().__init__()
        self.stem = nn.Conv2d(
            3, width, 7 if imagenet else 3, 2 if imagenet else 1, 3 if imagenet else 1, bias=False
        )
        self.norm = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        layers, inputs = [], width
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            for block in range(count):
                layers.append(BasicBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*layers)
        self.average = nn.AvgPool2d(7) if imagenet else None
        self.head = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.blocks(self.pool(F.relu(self.norm(self.stem(x)))))
        x = self.average(x) if self.average is not None else F.avg_pool2d(x, x.shape[-1])
        return self.head(torch.flatten(x, 1))


MODELS = {
    "cifar-18": ({"blocks": (2, 2, 2, 2)}, 32),
    "imagenet-18": ({"blocks": (2, 2, 2, 2), "classes": 1000, "imagenet": True}, 224),
    "imagenet-34": ({"blocks": (3, 4, 6, 3), "classes": 1000, "imagenet": True}, 224),
}


def resnet(name, width=64):
    """A model without memory, in eval mode, and its example input."""
    options, size = MODELS[name]
    with torch.device("meta"):
        return ResNet(width=width, **options).eval(), (torch.zeros(1, 3, size, size),)


def reference_flops(name, width=64):
    """FLOPs of one image by the published code's rules.

    Additions, multiplications and square roots; of pooling modules too, not of pooling functions.

    Returns:
        FLOPs of what is never masked, and those of the maskable convolutions at density 1.
    """
    model, args = resnet(name, width)
    fixed = masked = 0

    def count(module, inputs, output):
        nonlocal fixed, masked
        places = output[0, 0].numel() if output.dim() == 4 else 1
        if isinstance(module, nn.Conv2d):
            size = module.weight.numel()
            flops = (size - 1) * places + size * places
            if module is model.stem:
                fixed += flops
            else:
                masked += flops
        elif isinstance(module, nn.BatchNorm2d):
            channels, numel = output.shape[1], output.numel()
            fixed += 2 * channels * (places - 1) + 2 * numel + 3 * numel + channels
        elif isinstance(module, nn.Linear):
            size = module.weight.numel()
            fixed += (size - module.out_features) + module.out_features + size
        elif isinstance(module, nn.MaxPool2d):
            fixed += (module.kernel_size**2 - 1) * output.numel()
        elif isinstance(module, nn.AvgPool2d):
            fixed += (module.kernel_size**2 - 1) * output.numel() + output.numel()

    handles = [module.register_forward_hook(count) for module in model.modules()]
    model(*(arg.to("meta") for arg in args))
    for handle in handles:
        handle.remove()
    return fixed, masked
