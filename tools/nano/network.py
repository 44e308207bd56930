"""`masklet-nano` as a trainable torch network, put together from the modules of the sam2 package.

In: masklet's own `Sam2Config`. Out: a `SAM2Base` with SAM 2.1's settings and exactly its state dict keys, so
that the runtime loads what was trained by its normal path. Knows nothing about data or training.

Settings as published for SAM 2.1 (Ravi et al. 2024, arXiv:2408.00714); only widths and depths are ours.
"""

from __future__ import annotations

from typing import Any

import torch
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.transformer import RoPEAttention, TwoWayTransformer
from sam2.modeling.sam2_base import SAM2Base

from masklet.families.sam2 import PRESETS, Sam2Config

EMBEDDING_STRIDE = 16  # pixels per token of the image embedding
LAYER_SCALE = 1e-2  # of the fuser at the start; published is 1e-6, which a short training never leaves
READING_RIDGE = 0.03  # keeps weights that read a place small, so that they hardly see the picture's content
TO_IMAGE = (
    0.08,
    0.08,
    0.12,
    0.12,
    0.2,
    0.2,
)  # widths of what heads see around a click; the picture is 2 wide
TO_TOKENS = (0.2, 0.2, 0.4, 0.4)
CONTENT = 0.2  # gain of the neck at the start: what is seen must not drown out where it is
NORM_GAIN, VALUE_GAIN, SELF_GAIN = (
    0.25,
    3.0,
    2.0,
)  # of the transformer's norms, values and first self-attention
EMBEDDING_SIZE = 0.3  # root mean square of an image embedding, see `similarity.LIMITS`
BRANCH_GAIN = 0.2  # of memory attention's residual branches at the start
FAST_ANGLES, NEARNESS = 20, 1.3  # channels of each axis, and their bias: a place six cells off counts little
LABEL_SPREAD = 0.1  # of labels' embeddings at the start: large ones would hide the place
MEAN = (0.485, 0.456, 0.406)  # of RGB in 0..1, as published
STD = (0.229, 0.224, 0.225)

NANO = PRESETS["masklet-nano"]


def build(config: Sam2Config, size: int) -> SAM2Base:
    """The network of a configuration with random weights, for square inputs of `size` pixels."""
    trunk = Hiera(**vars(config.trunk))
    model = SAM2Base(
        image_encoder=ImageEncoder(trunk, _neck(trunk, config.d_model), scalp=1),
        memory_attention=_memory_attention(config),
        memory_encoder=_memory_encoder(config),
        num_maskmem=7,
        image_size=size,
        backbone_stride=EMBEDDING_STRIDE,
        sigmoid_scale_for_mem_enc=20.0,
        sigmoid_bias_for_mem_enc=-10.0,
        use_mask_input_as_output_without_sam=True,
        directly_add_no_mem_embed=True,
        no_obj_embed_spatial=True,
        use_high_res_features_in_sam=True,
        multimask_output_in_sam=True,
        multimask_min_pt_num=0,
        multimask_max_pt_num=1,
        multimask_output_for_tracking=True,
        use_multimask_token_for_obj_ptr=True,
        iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True,
        add_tpos_enc_to_obj_ptrs=True,
        proj_tpos_enc_in_obj_ptrs=True,
        use_signed_tpos_enc_to_obj_ptrs=True,
        only_obj_ptrs_in_the_past_for_eval=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        fixed_no_obj_ptr=True,
        use_mlp_for_obj_ptr_proj=True,
    )
    # SAM2Base fixes the width of the MLP at 2048.
    model.sam_mask_decoder.transformer = TwoWayTransformer(
        depth=2, embedding_dim=config.d_model, mlp_dim=config.mlp_dim, num_heads=8
    )
    _initialise(model)
    return model


def set_size(model: SAM2Base, size: int) -> None:
    """Change the side of the input, in pixels; positions follow it. No weight depends on it."""
    grid = size // EMBEDDING_STRIDE
    model.image_size = size
    model.sam_image_embedding_size = grid
    prompts = model.sam_prompt_encoder
    prompts.input_image_size = (size, size)
    prompts.image_embedding_size = (grid, grid)
    prompts.mask_input_size = (4 * grid, 4 * grid)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """(B, S, S, 3) uint8 RGB -> (B, 3, S, S) float32, as the published models want it."""
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(1, 3, 1, 1)
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def parameter_count(model: torch.nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in model.parameters())


def _neck(trunk: Hiera, width: int) -> FpnNeck:
    return FpnNeck(
        PositionEmbeddingSine(width, normalize=True, scale=None, temperature=10000),
        d_model=width,
        backbone_channel_list=trunk.channel_list,
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )


def _memory_attention(config: Sam2Config) -> MemoryAttention:
    def attention(**more: Any) -> RoPEAttention:
        return RoPEAttention(
            embedding_dim=config.d_model,
            num_heads=1,
            downsample_rate=1,
            dropout=0.0,
            rope_theta=10000.0,
            feat_sizes=(16, 16),  # a first guess: the module follows the grid
            **more,
        )

    layer = MemoryAttentionLayer(
        activation="relu",
        cross_attention=attention(rope_k_repeat=True, kv_in_dim=config.memory_dim),
        d_model=config.d_model,
        dim_feedforward=config.mlp_dim,
        dropout=0.0,
        pos_enc_at_attn=False,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        self_attention=attention(),
    )
    return MemoryAttention(
        config.d_model, pos_enc_at_input=True, layer=layer, num_layers=config.memory_layers
    )


def _memory_encoder(config: Sam2Config) -> MemoryEncoder:
    block = CXBlock(
        config.d_model, kernel_size=7, padding=3, layer_scale_init_value=LAYER_SCALE, use_dwconv=True
    )
    return MemoryEncoder(
        out_dim=config.memory_dim,
        in_dim=config.d_model,
        mask_downsampler=MaskDownSampler(config.d_model, kernel_size=3, stride=2, padding=1),
        fuser=Fuser(block, num_layers=2),
        position_encoding=PositionEmbeddingSine(
            config.memory_dim, normalize=True, scale=None, temperature=10000
        ),
    )


def _initialise(model: Any) -> None:
    """Transformer initialisation, and prompts that point from the first step on.

    torch's default for linear layers makes attention start too flat and its biases random. In the mask
    decoder, content and place are added up and share the projections: with the norms' gains at one a click
    hardly finds its own place (`_see_places`), so they start low, and values are enlarged in their stead.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
        elif isinstance(module, torch.nn.Embedding) and "sam_" in name:
            torch.nn.init.normal_(module.weight, std=LABEL_SPREAD if "point_embeddings" in name else 0.5)
    for lateral in model.image_encoder.neck.convs[:2]:  # those of strides 32 and 16
        lateral.conv.weight.data.mul_(CONTENT)
        lateral.conv.bias.data.zero_()
    transformer, encoding = model.sam_mask_decoder.transformer, model.sam_prompt_encoder.pe_layer
    for layer in transformer.layers:
        _see_places(layer.cross_attn_token_to_image, encoding, TO_IMAGE)
        _see_places(layer.cross_attn_image_to_token, encoding, TO_TOKENS)
        for norm in (layer.norm1, layer.norm2, layer.norm3, layer.norm4):
            norm.weight.data.fill_(NORM_GAIN)
        for attention in (layer.self_attn, layer.cross_attn_token_to_image, layer.cross_attn_image_to_token):
            attention.v_proj.weight.data.mul_(VALUE_GAIN)
    _see_places(transformer.final_attn_token_to_image, encoding, TO_IMAGE)
    transformer.final_attn_token_to_image.v_proj.weight.data.mul_(VALUE_GAIN)
    model.sam_mask_decoder.output_upscaling[0].weight.data.mul_(VALUE_GAIN)
    _pass_on(transformer.layers[0].self_attn)
    _remember_gently(model.memory_attention)
    trunk = model.image_encoder.trunk
    torch.nn.init.trunc_normal_(trunk.pos_embed, std=0.02)
    torch.nn.init.trunc_normal_(trunk.pos_embed_window, std=0.02)


def _remember_gently(memory: Any) -> None:
    """Let memory attention begin as the features themselves, of about their size, looking for what is
    remembered where it was: biases of queries and keys that rotary encoding turns into nearness."""
    memory.norm.weight.data.fill_(EMBEDDING_SIZE)
    for layer in memory.layers:
        for branch in (layer.self_attn.out_proj, layer.cross_attn_image.out_proj, layer.linear2):
            branch.weight.data.mul_(BRANCH_GAIN)
        for projection in (layer.cross_attn_image.q_proj, layer.cross_attn_image.k_proj):
            halves = projection.bias.data.view(2, -1)  # columns and rows, fast angles first
            halves[:, :FAST_ANGLES] = NEARNESS


def _pass_on(attention: Any) -> None:
    """Let each token attend to itself and hand on what it is: the first self-attention has no way around."""
    attention.q_proj.weight.data.mul_(SELF_GAIN)
    attention.k_proj.weight.data.copy_(attention.q_proj.weight)
    torch.nn.init.eye_(attention.v_proj.weight)
    torch.nn.init.eye_(attention.out_proj.weight)


def _see_places(attention: Any, encoding: Any, widths: tuple[float, ...]) -> None:
    """Let the first heads see what is near: attention that falls off with distance like a Gaussian.

    Queries and keys carry an encoding of their place, linear combinations of which are nearly x, y and their
    squares; a product of two such is a squared distance. Left to chance, a seventh of a click's
    attention is near it behind the first layer; so, two thirds are (pictures of 128 pixels).
    """
    reading, offset = _place_reading(encoding)
    channels = attention.internal_dim // attention.num_heads
    query, key = attention.q_proj, attention.k_proj
    with torch.no_grad():
        for head, width in enumerate(widths):
            gain = channels**0.25 / width
            first = head * channels
            for projection in (query, key):
                projection.weight[first : first + channels] *= 0.5
                projection.weight[first : first + 2] = gain * reading[:2]
                projection.bias[first : first + 2] = gain * offset[:2]
            query.weight[first + 2] = 0
            query.bias[first + 2] = gain
            key.weight[first + 2] = -gain * reading[2]
            key.bias[first + 2] = -gain * offset[2]


def _place_reading(encoding: Any, grid: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, C), (3,): weights and bias that read x, y and (x * x + y * y) / 2, in -1..1, off an encoding."""
    codes = encoding((grid, grid)).flatten(1).T.double()
    line = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    wanted = torch.stack([x, y, (x * x + y * y) / 2], dim=-1).flatten(0, 1)
    centred = codes - codes.mean(0)
    ridge = READING_RIDGE * len(codes) * torch.eye(codes.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ (wanted - wanted.mean(0))).T
    return weight.float(), (wanted.mean(0) - weight @ codes.mean(0)).float()
