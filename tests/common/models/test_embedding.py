"""common/models/embedding.py: what a model's head sees."""

from __future__ import annotations

import pytest
import torch

from common.errors import UsageError
from common.models.backbone import create_model
from common.models.embedding import head_input

MODELS = [("resnet10t", None), ("resnet10t", "gem"), ("vit_tiny_patch16_224", None), ("convnext_atto", None)]


@pytest.mark.parametrize(("name", "pool"), MODELS)
def test_the_embedding_is_what_the_head_makes_the_logits_of(name: str, pool: str | None) -> None:
    torch.manual_seed(0)
    model = create_model(name, 6, 3, image_size=32, pool=pool).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), head_input(model) as seen:
        logits = model(images)
        torch.testing.assert_close(model.get_classifier()(seen[0]), logits)
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(seen[0], expected)
    assert seen[0].shape == (2, model.num_features)


def test_a_model_without_a_linear_head_has_no_embedding() -> None:
    with (
        pytest.raises(UsageError, match="head is no linear layer"),
        head_input(create_model("resnet10t", 6, 3).reset_classifier(0) or torch.nn.Flatten()),
    ):
        pass
