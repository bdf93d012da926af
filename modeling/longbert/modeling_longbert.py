"""LongBert: BERT's classes with positions past the source's table. Travels to the Hub beside its siblings."""

import copy
from collections.abc import Callable
from os.path import join
from typing import Any, Unpack

import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertPreTrainedModel,
    PreTrainedConfig,
)
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    MaskedLMOutput,
    ModelOutput,
    QuestionAnsweringModelOutput,
    TokenClassifierOutput,
)
from transformers.models.bert.modeling_bert import (
    BertEmbeddings,
    BertForPreTrainingOutput,
    BertSelfAttention,
)
from transformers.utils import TransformersKwargs, logging

from .attention import NAME as LINEAR_ATTENTION
from .attention import told
from .configuration_longbert import LongBertConfig
from .explicit_masks import as_implemented, closed_mask, plain_mask
from .feed_forward import LongBertIntermediate, LongBertOutput
from .loading import Loading
from .losses import IGNORE_INDEX, hidden_at_padding, masked_lm_loss, sentence_pair_loss, span_loss
from .model_card import STUB, model_card
from .position_embeddings import POSITION_TYPES, PositionEmbedding, computing_dtype
from .text_layout import Flattening, Window
from .texts import Texts, attended, explicit_mask, first_of, is_traced, read_texts, whole_rows
from .transplant import register_transplant


logger = logging.get_logger(__name__)


class DoesNotFitError(ValueError, RuntimeError):
    """A source's weights do not fit the model; transformers raised a RuntimeError that names them."""


class LongBertEmbeddings(BertEmbeddings):
    """BERT's embeddings with the position table swapped for `config.position_type`; `forward` is BERT's."""

    def __init__(self, config: LongBertConfig):
        # BERT would allocate a row for every position, 262,144 of them for hierarchical, only to lose them here
        without_table = copy.copy(config)
        without_table.max_position_embeddings = 1
        super().__init__(without_table)
        self.position_embeddings = POSITION_TYPES[config.position_type](config)
        self.set_length(config.max_position_embeddings)

    def set_length(self, length: int) -> None:
        """Make BERT's `position_ids` and `token_type_ids` buffers, `[1, length]`, reach as far as the positions do."""
        device = self.position_ids.device
        self.register_buffer("position_ids", torch.arange(length, device=device).expand(1, -1), persistent=False)
        self.register_buffer(
            "token_type_ids", torch.zeros(1, length, dtype=torch.long, device=device), persistent=False
        )


class LongBertPreTrainedModel(BertPreTrainedModel):
    """What every LongBert class adds to its BERT class: the swap, initialisation, checks on loading, resizing."""

    config_class = LongBertConfig
    config: LongBertConfig
    bert: BertModel
    # not the embeddings, which BERT names too: FSDP would divide them apart from the head that shares their table
    _no_split_modules = ["BertLayer"]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if any(base.__name__ == "FSDPModule" for base in cls.__bases__):
            # torch's FSDP2 gives a model a class made on the spot; what is saved must name one that can be imported
            for name in ("__name__", "__qualname__", "__module__"):
                setattr(cls, name, getattr(cls.__bases__[-1], name))
        # transformers keys conversions of custom code on the class's name, a user's own among them
        register_transplant(cls.__name__)

    def __init__(self, config: LongBertConfig, *args: Any, **kwargs: Any):
        if not hasattr(config, "position_type"):
            raise ValueError(
                f"{type(self).__name__} is built from a LongBertConfig, got a {type(config).__name__}: make one by "
                "LongBertConfig.from_pretrained(source), or of this one by LongBertConfig.from_dict(config.to_dict())"
            )
        config.validate()
        if config._attn_implementation is None and not config.is_decoder:
            config._attn_implementation = LINEAR_ATTENTION
            logger.info(f"attn_implementation={LINEAR_ATTENTION!r}: linear memory, no computation on padding")
        checkpointing = getattr(config, "gradient_checkpointing", False)
        with torch.device("meta"):  # BERT builds parts that are replaced at once: give them no memory
            super().__init__(config, *args, **kwargs)
        if checkpointing:  # an old setting, which the first model that is built takes from the config
            config.gradient_checkpointing = True
        self._swap_parts()
        device = torch.get_default_device()
        for child in self.children():
            if any(tensor.is_meta for tensor in child.state_dict().values()):
                child.to_empty(device=device)
        self._no_split_modules = type(self)._no_split_modules  # the replaced parts have left theirs
        self.post_init()

    def _swap_parts(self) -> None:
        """Replace a head's BertModel by a LongBertModel. A user's class that has none yet builds its own after
        this."""
        for name, child in self.named_children():
            if type(child) is BertModel:
                setattr(self, name, LongBertModel(self.config, add_pooling_layer=child.pooler is not None))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PositionEmbedding):
            module.init_weight()
        if isinstance(module, LongBertSelfAttention) and module.far_gate is not None:
            init.constant_(module.far_gate, self.config.closed_attention_start)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        config: Any = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As transformers', for any architecture that is BERT under other names (`families.py`).

        If the class holds several encoders and the source one, all of them begin as the source's.

        Raises:
            ValueError: the source is another architecture, its position table does not fit `config`, or its encoder
                did not arrive whole.
        """
        if isinstance(config, PreTrainedConfig) and not hasattr(config, "position_type"):
            config = cls.config_class.from_dict(config.to_dict())
        loading = Loading.of(cls, pretrained_model_name_or_path, config, args, kwargs)
        if loading is not None:
            kwargs["key_mapping"] = loading.key_mapping() or None
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, config=config, output_loading_info=True, **kwargs
            )
        except RuntimeError as error:
            if "the above report" not in str(error):
                raise
            raise DoesNotFitError(
                f"{pretrained_model_name_or_path or 'the state_dict'} does not fit this {cls.__name__}: the report "
                "above names each weight. Build its config with LongBertConfig.from_pretrained(source, ...), or pass "
                "ignore_mismatched_sizes=True for a head that is to be new"
            ) from error
        if loading is not None:
            loading.complete(model, info)
        return (model, info) if output_loading_info else model

    def save_pretrained(self, *args: Any, save_original_format: bool = False, **kwargs: Any) -> None:
        """As transformers', but under the names that the model has, not those of the file it was read from.

        Old checkpoints, bert-base-uncased among them, call LayerNorm's weights gamma and beta, and transformers'
        Trainer would not find these again in its own checkpoints: it resumed, and chose its best model, without them.

        A `state_dict` that FSDP2 has gathered has a copy for each name of a tied weight; one is saved, as without it.

        Raises:
            ValueError: the config was changed by hand into one that the weights do not fit.
        """
        for encoder in self.long_encoders():
            encoder.refuse_edited_config()
        if given := kwargs.get("state_dict"):
            tied = self.all_tied_weights_keys
            kwargs["state_dict"] = {name: each for name, each in given.items() if tied.get(name) not in given}
        super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """As transformers', which every push ends with; an empty card is replaced by ours."""
        file = join(working_dir, "README.md")
        if STUB in ModelCard.load(file).content:
            model_card(self.config, repo_id).save(file)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def _logits(
        self,
        predict: Callable[[torch.Tensor], torch.Tensor],
        hidden_states: torch.Tensor,
        labels: torch.LongTensor | None,
        output_logits: bool | None,
    ) -> torch.Tensor | None:
        """Logits over the vocabulary, if they are wanted; training with labels does not need them."""
        wanted = (labels is None or not self.training) if output_logits is None else output_logits
        return predict(hidden_states) if wanted else None

    def _real_tokens(self, attention_mask: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor | None:
        """`[batch_size, seq_length]` bool, False at padding; None where there is none, or no mask that says so.

        Args:
            tokens: `[batch_size, seq_length]`, a tensor with an entry for each token, such as `input_ids`.
        """
        if attention_mask is None:
            return None
        shape, attention_mask = (tokens.shape[0], tokens.shape[1]), attention_mask.to(tokens.device)
        if attention_mask.dim() == 2:  # says it of itself: the host need not wait to hear whether anything is padding
            return attended(attention_mask).expand(shape)
        texts = read_texts(attention_mask, None, shape, self.config.num_attention_heads)
        return None if texts is None else texts.real

    def _labels_of_texts(
        self, labels: torch.LongTensor | None, attention_mask: torch.Tensor | None
    ) -> torch.LongTensor | None:
        """Labels of tokens, with those at padding ignored."""
        real = None if labels is None else self._real_tokens(attention_mask, labels)
        return labels if labels is None or real is None else labels.masked_fill(~real, IGNORE_INDEX)

    def _returned(self, output: ModelOutput, return_dict: bool | None) -> tuple[torch.Tensor, ...] | ModelOutput:
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def long_encoders(self) -> list["LongBertModel"]:
        """All long encoders of the model, itself included: one in our classes, any number in a user's own."""
        return [module for module in self.modules() if isinstance(module, LongBertModel)]

    def get_position_embeddings(self) -> PositionEmbedding:
        """The module that gives positions their vectors.

        Raises:
            ValueError: there are several encoders, each with one of its own.
        """
        encoders = self.long_encoders()
        if len(encoders) != 1:
            raise ValueError(
                f"{type(self).__name__} has {len(encoders)} long encoders, each with positions of its own: ask one of "
                "model.long_encoders()"
            )
        return encoders[0].embeddings.position_embeddings

    @torch.no_grad()
    def position_table(self, length: int | None = None) -> torch.Tensor:
        """The vectors `[length, hidden_size]` of positions 0..length-1, by default all that the model reaches.

        Written into a plain BERT's table they give the same model, whatever the position type.
        """
        positions = self.get_position_embeddings()
        length = positions.config.max_position_embeddings if length is None else length
        return positions(torch.arange(length, device=positions.weight.device))

    @torch.no_grad()
    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Change `max_position_embeddings` in place: config, stored rows and buffers, of every encoder there is.

        Rows that stay are unchanged; new rows of `learned-extended` are filled by `config.position_init` from all rows
        there are, the other types need none. A model that is taken past its source for the first time is given a
        window (`default_window`), as `from_pretrained` gives it.

        Raises:
            huggingface_hub.errors.StrictDataclassError: the length is beyond the type's reach or below the source's.
            ValueError: `config.position_init` would move the rows that the model has.
        """
        resized = type(self.config).from_dict(
            self.config.to_dict(), max_position_embeddings=new_num_position_embeddings
        )
        encoders = self.long_encoders()
        weights = [
            each.embeddings.position_embeddings.resized_weight(new_num_position_embeddings) for each in encoders
        ]
        for encoder, weight in zip(encoders, weights, strict=True):
            positions = encoder.embeddings.position_embeddings
            positions.weight = nn.Parameter(weight.clone(), requires_grad=positions.weight.requires_grad)
            encoder.embeddings.set_length(new_num_position_embeddings)
        for config in [self.config, *(each.config for each in encoders)]:
            config.max_position_embeddings = new_num_position_embeddings
            config.attention_window = resized.attention_window


class LongBertSelfAttention(BertSelfAttention):
    """BERT's self-attention, which picks the window's mask or the full one where the masks are explicit.

    Args:
        layer_idx: whether the layer reads through the window, in full, or begins closed is the config's to say.
    """

    def __init__(self, config: LongBertConfig, layer_idx: int):
        super().__init__(config, is_causal=config.is_decoder, layer_idx=layer_idx)
        self.reads_in_full = layer_idx in (config.full_attention_layers or [])
        closed = layer_idx in (config.closed_attention_layers or [])
        self.far_gate = nn.Parameter(torch.empty(config.num_attention_heads)) if closed else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *args: Any,
        window_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, ...]:
        mask = attention_mask if window_mask is None or self.reads_in_full else window_mask
        if self.far_gate is not None and attention_mask is not None and window_mask is not None:
            mask = closed_mask(attention_mask, window_mask, self.far_gate, hidden_states.dtype)
        return super().forward(hidden_states, mask, *args, **kwargs)


class LongBertModel(LongBertPreTrainedModel, BertModel):
    """BERT's encoder, `[batch_size, seq_length]` token ids to `[batch_size, seq_length, hidden_size]`, past 512.

    With `attn_implementation="longbert"`, the default, a padded or packed batch is flattened into one row before the
    embeddings and padded again after the last layer, so that no padding is computed. Where it is traced or compiled,
    a window is computed in blocks instead, and full attention by torch. Other implementations, decoders and
    `output_attentions` get explicit masks that say the same, at n² memory.

    Where `sequence_group` is a `torch.distributed` process group, its processes compute a stretch of the flattened row
    each; all are given the same batch, and all get the whole output.
    """

    sequence_group: Any = None

    def _swap_parts(self) -> None:
        self.embeddings = LongBertEmbeddings(self.config)
        for index, layer in enumerate(self.encoder.layer):
            layer.attention.self = LongBertSelfAttention(self.config, layer_idx=index)
            layer.intermediate, layer.output = LongBertIntermediate(self.config), LongBertOutput(self.config)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        global_attention_mask: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],  # type: ignore[misc]
    ) -> tuple[torch.Tensor, ...] | BaseModelOutputWithPoolingAndCrossAttentions:
        """As `BertModel.forward`, but for one argument, and positions that count from the first attended token.

        Without an `attention_mask`, `position_ids` that are 0 again inside a row mark packed documents, which do not
        see each other. What is pooled is the first attended token, wherever it stands.

        Args:
            attention_mask: `[batch_size, seq_length]`, of any dtype, not 0 at tokens to attend to; or what each query
            sees, in 3 or 4 dimensions (see `read_texts`). If such a mask only describes padding or packed documents,
            it is read as that; positions then run through the row, from its first attended token.
            global_attention_mask: `[batch_size, seq_length]`, 1 at further tokens that see and are seen by all under
                `config.attention_window`, such as a question's.

        Raises:
            ValueError: the input is longer than `config.max_position_embeddings`, a mask does not fit it, or a mask
                says more than padding or packing where a window or mean pooling needs to know the texts.
        """
        inputs = {
            "input_ids": input_ids,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        output = self._encode(inputs, attention_mask, global_attention_mask, **kwargs, return_dict=True)
        return self._returned(output, return_dict)

    def _encode(
        self,
        inputs: dict[str, torch.Tensor | None],
        attention_mask: torch.Tensor | None,
        global_attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Choose how the attention is told who sees whom."""
        tokens = inputs["input_ids"] if inputs["input_ids"] is not None else inputs["inputs_embeds"]
        if tokens is None:
            return super().forward(attention_mask=attention_mask, **inputs, **kwargs)
        # a decoder's; transformers 5.24 renamed it
        cache = kwargs.get("cache") or kwargs.get("past_key_values")
        cached = cache.get_seq_length() if cache is not None else 0
        shape = (tokens.shape[0], tokens.shape[1])
        self._refuse_length(shape[1] + cached)
        self._refuse_positions(inputs["position_ids"], shape)
        if attention_mask is not None:
            if not isinstance(attention_mask, torch.Tensor):
                raise ValueError(f"attention_mask must be a tensor, got {type(attention_mask).__name__}")
            attention_mask = attention_mask.to(tokens.device)
        if self.config.is_decoder or cache is not None:
            return self._encode_after(cached, inputs, attention_mask, shape, **kwargs)
        texts = read_texts(attention_mask, inputs["position_ids"], shape, self.config.num_attention_heads)
        window = self._window(shape[1])
        is_longbert = self.config._attn_implementation == LINEAR_ATTENTION
        with_attentions = kwargs.get("output_attentions", self.config.output_attentions)
        if texts is not None and attention_mask is not None:
            inputs |= self._place(texts, inputs["position_ids"], inputs["token_type_ids"])
        if texts is not None and texts.mask is not None:
            self._refuse_unread(window)
            output = super().forward(**inputs, attention_mask=self._as_implemented(texts.mask), **kwargs)
        elif not is_longbert or with_attentions or is_traced():
            in_blocks = is_longbert and not with_attentions
            given = (texts, shape, tokens.device, window, global_attention_mask, in_blocks)
            output = super().forward(**inputs, **told(self.config, self.dtype, *given), **kwargs)
        elif texts is None and window is None and self.sequence_group is None:
            output = super().forward(**inputs, **kwargs)
        else:
            texts = texts or whole_rows(shape, tokens.device)
            marks = (self.config.global_tokens, global_attention_mask)
            output = self._forward_flat(inputs, Flattening(texts, window, *marks, self.sequence_group), **kwargs)
        return self._pool(output, None if texts is None else texts.real)

    def _encode_after(
        self,
        cached: int,
        inputs: dict[str, torch.Tensor | None],
        attention_mask: torch.Tensor | None,
        shape: tuple[int, int],
        **kwargs: Any,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Run a decoder, or an encoder after a cached prefix, with BERT's own masks.

        Args:
            cached: tokens before these, which the mask covers too.
        """
        window = self._window(cached + shape[1])
        if window is not None:
            raise ValueError("attention_window cannot look into a cache: pass the whole text, or none of it cached")
        real = None
        if attention_mask is None:
            attention_mask = self._causal_documents(inputs["position_ids"], shape, cached)
        elif attention_mask.dim() == 2:
            texts = read_texts(attention_mask, None, (shape[0], cached + shape[1]), self.config.num_attention_heads)
            if texts is not None:
                inputs |= self._place(texts, inputs["position_ids"], inputs["token_type_ids"], cached)
                real = texts.real[:, cached:]
            attention_mask = None if texts is None else texts.real
        else:
            self._refuse_unread(window)
            attention_mask = self._as_implemented(explicit_mask(attention_mask))
        of_source = kwargs.get("encoder_attention_mask")
        if of_source is not None:
            explicit = of_source.dim() != 2
            kwargs["encoder_attention_mask"] = (
                self._as_implemented(explicit_mask(of_source)) if explicit else attended(of_source)
            )
        return self._pool(super().forward(attention_mask=attention_mask, **inputs, **kwargs), real)

    def _causal_documents(
        self, position_ids: torch.LongTensor | None, shape: tuple[int, int], cached: int
    ) -> torch.Tensor | None:
        """The mask that tells a decoder about packed documents, which BERT's own code does not know."""
        if not self.config.is_decoder or not isinstance(cached, int) or cached:
            return None
        texts = read_texts(None, position_ids, shape, self.config.num_attention_heads)
        if texts is None:
            return None
        return self._as_implemented(plain_mask(texts, texts.real, None).tril())

    def _pool(
        self, output: BaseModelOutputWithPoolingAndCrossAttentions, real: torch.Tensor | None
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Pool each row as the config says. BERT has already pooled index 0, which may be padding.

        Args:
            real: `[batch_size, seq_length]` bool, False at padding; None where there is none.
        """
        states = output.last_hidden_state
        if self.pooler is None or (real is None and self.config.classifier_pooling != "mean"):
            return output
        real = None if real is None else real.to(states.device)
        if self.config.classifier_pooling == "mean":
            pooled = mean_of_texts(states, real)[:, None]
        else:
            pooled = states.gather(1, first_of(real)[:, :, None].expand(-1, 1, states.shape[-1]))
        output.pooler_output = self.pooler(pooled)
        return output

    def _forward_flat(
        self, inputs: dict[str, torch.Tensor | None], flattening: Flattening, **kwargs: Any
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Run the encoder on the real tokens alone, as one row."""
        if inputs["position_ids"] is None:
            inputs["position_ids"] = self.embeddings.position_ids[:, : flattening.shape[1]]
        shard = flattening.layout.shard
        flat = {name: flattening.flatten(tensor) for name, tensor in inputs.items()}
        if shard is not None:
            flat = {name: shard.take(tensor) for name, tensor in flat.items()}
        output = super().forward(**flat, layout=flattening.layout, **kwargs)

        def whole(states: torch.Tensor | None) -> torch.Tensor | None:
            if states is None:  # of a layer that `output_hidden_states=[...]` does not name
                return None
            return flattening.pad(states if shard is None else shard.gather(states, dim=1))

        output.last_hidden_state = whole(output.last_hidden_state)
        if output.hidden_states is not None:
            output.hidden_states = tuple(map(whole, output.hidden_states))
        return output

    def _as_implemented(self, mask: torch.Tensor) -> torch.Tensor:
        return as_implemented(mask, self.config._attn_implementation, self.dtype)

    def _refuse_unread(self, window: Window | None) -> None:
        """Refuse what needs to know the texts, where the mask says more than padding or packing."""
        needs = None
        if self.pooler is not None and self.config.classifier_pooling == "mean":
            needs = "classifier_pooling='mean'"
        if window is not None:
            needs = f"attention_window={self.config.attention_window}"
        if needs is not None:
            raise ValueError(
                f"{needs} needs to know the texts, and this attention_mask says neither padding nor packed documents "
                "alone: pass a 2D mask or packed position_ids, or change that setting of the config"
            )

    def _window(self, seq_length: int) -> Window | None:
        """The window, if a text of the batch can be long enough for it; always when exporting, for every length."""
        if self.config.attention_window is None:
            return None
        exporting = torch.compiler.is_exporting() or torch.jit.is_tracing()
        if not exporting and seq_length <= self.config.pretrained_positions:
            return None
        return Window(self.config.attention_window // 2, longer_than=self.config.pretrained_positions)

    def refuse_edited_config(self) -> None:
        """Raise `ValueError` where the config was changed by hand into one that the weights do not fit."""
        config, positions = self.config, self.embeddings.position_embeddings
        reach, rows = self.embeddings.position_ids.shape[-1], POSITION_TYPES[config.position_type].stored_rows(config)
        stored = len(positions.weight) or rows  # 0 where another process holds them
        if reach != config.max_position_embeddings or (rows and rows != stored):
            raise ValueError(
                f"config says max_position_embeddings={config.max_position_embeddings} and {rows} stored rows, the "
                f"model was built for {reach} and holds {stored}: set the config as it was, and call "
                f"model.resize_position_embeddings({config.max_position_embeddings}) or load the model anew"
            )

    def _refuse_length(self, length: int) -> None:
        reach = self.embeddings.position_ids.shape[-1]
        if length > reach:
            raise ValueError(
                f"the input has {length} tokens, this model reaches {reach} (max_position_embeddings): truncate it "
                f"(truncation=True, max_length={reach}), or extend the model with "
                f"model.resize_position_embeddings({length}) or `longbert extend --max-positions {length}`"
            )

    def _refuse_positions(self, position_ids: torch.Tensor | None, shape: tuple[int, int]) -> None:
        batch_size, length = shape
        if position_ids is None:
            return
        if position_ids.dim() != 2 or position_ids.shape[0] not in (1, batch_size) or position_ids.shape[1] != length:
            raise ValueError(
                f"position_ids has the shape {list(position_ids.shape)}, the input has {batch_size} rows of {length} "
                f"tokens: pass [{batch_size}, {length}] or [1, {length}]"
            )

    def _place(
        self,
        texts: Texts,
        position_ids: torch.LongTensor | None,
        token_type_ids: torch.LongTensor | None,
        cached: int = 0,
    ) -> dict[str, torch.LongTensor | None]:
        """Positions that count from the first attended token, so that padding on the left moves nothing.

        With `zero_padding_positions`, padding stands at position -1; token types are then passed too, because BERT
        looks missing ones up by position.
        """
        real = texts.real[:, cached:]
        if position_ids is None:
            position_ids = (texts.index - texts.first).clamp(min=0)[:, cached:]
        if self.config.zero_padding_positions:
            position_ids = position_ids.expand(real.shape).masked_fill(~real, -1)
            if token_type_ids is None:
                token_type_ids = torch.zeros_like(position_ids)
        return {"position_ids": position_ids, "token_type_ids": token_type_ids}


def mean_of_texts(hidden_states: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """The mean vector `[batch_size, hidden_size]` of each row's own tokens, summed in fp32 or better.

    Args:
        real: `[batch_size, seq_length]` bool, False at padding; None where there is none.
    """
    precise = computing_dtype(hidden_states.dtype)
    if real is None:
        return hidden_states.mean(dim=1, dtype=precise).to(hidden_states.dtype)
    total = hidden_states.masked_fill(~real[:, :, None], 0).sum(dim=1, dtype=precise)
    return (total / real.sum(dim=1, keepdim=True)).to(hidden_states.dtype)


class PredictsTokens(LongBertPreTrainedModel):
    """What models with an MLM head share."""

    cls: nn.Module

    def labelled_logits(self, labels: torch.LongTensor, **inputs: Any) -> torch.Tensor:
        """The MLM head's logits `[labelled, vocab_size]` where `labels` `[batch_size, seq_length]` are not -100, row
        by row: a text's other logits, the largest tensor of all, are not computed.

        Where FSDP2 divides the model, name it by `torch.distributed.fsdp.register_fsdp_forward_method`.
        """
        hidden_states = self.bert(**inputs).last_hidden_state
        return self.cls.predictions(hidden_states[labels != IGNORE_INDEX])


class LongBertForPreTraining(PredictsTokens, BertForPreTraining):
    """MLM and next-sentence (or sentence-order) heads, as in BERT's pretraining; both losses mean the same for any
    split of a batch."""

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        next_sentence_label: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        num_pairs_in_batch: torch.Tensor | int | None = None,
        output_logits: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],  # type: ignore[misc]
    ) -> tuple[torch.Tensor, ...] | BertForPreTrainingOutput:
        """As `BertForPreTraining.forward`, but for three arguments, and a loss in fp32 also where there is but one
        kind of label.

        Args:
            num_items_in_batch: labelled positions of the whole optimizer step; see `masked_lm_loss`.
            num_pairs_in_batch: sentence pairs of the whole optimizer step; see `sentence_pair_loss`.
            output_logits: whether to compute `prediction_logits`; as for `LongBertForMaskedLM`.
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        pair_logits = self.cls.seq_relationship(outputs.pooler_output)
        labels = self._labels_of_texts(labels, attention_mask)
        losses = []
        if labels is not None:
            predict = self.cls.predictions
            losses.append(masked_lm_loss(predict, outputs.last_hidden_state, labels, num_items_in_batch))
        if next_sentence_label is not None:
            losses.append(sentence_pair_loss(pair_logits, next_sentence_label.view(-1), num_pairs_in_batch))
        result = BertForPreTrainingOutput(
            loss=sum(losses) if losses else None,
            prediction_logits=self._logits(self.cls.predictions, outputs.last_hidden_state, labels, output_logits),
            seq_relationship_logits=pair_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return self._returned(result, return_dict)


class LongBertForMaskedLM(PredictsTokens, BertForMaskedLM):
    """MLM head, with a loss that is computed at labelled positions only and means the same for any split of a
    batch."""

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        output_logits: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],  # type: ignore[misc]
    ) -> tuple[torch.Tensor, ...] | MaskedLMOutput:
        """As `BertForMaskedLM.forward`, but for two arguments and the loss's dtype, which is always fp32.

        Args:
            num_items_in_batch: labelled positions of the whole optimizer step; see `masked_lm_loss`.
            output_logits: whether to compute `logits` `[batch_size, seq_length, vocab_size]`. By default they are left
                out in training with labels, where they are the largest tensor and nobody reads them.
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        loss, labels = None, self._labels_of_texts(labels, attention_mask)
        if labels is not None:
            loss = masked_lm_loss(self.cls, outputs.last_hidden_state, labels, num_items_in_batch)
        result = MaskedLMOutput(
            loss=loss,
            logits=self._logits(self.cls, outputs.last_hidden_state, labels, output_logits),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return self._returned(result, return_dict)


class LongBertForNextSentencePrediction(LongBertPreTrainedModel, BertForNextSentencePrediction):
    """Next-sentence head on the pooled [CLS]."""


class LongBertForSequenceClassification(LongBertPreTrainedModel, BertForSequenceClassification):
    """Classification or regression of a whole text, from [CLS] or the mean of all tokens (`classifier_pooling`)."""


class LongBertForTokenClassification(LongBertPreTrainedModel, BertForTokenClassification):
    """A label for every token."""

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],  # type: ignore[misc]
    ) -> tuple[torch.Tensor, ...] | TokenClassifierOutput:
        """As `BertForTokenClassification.forward`, but labels at padding are ignored, whatever they are."""
        return super().forward(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=self._labels_of_texts(labels, attention_mask),
            **kwargs,
        )


class LongBertForQuestionAnswering(LongBertPreTrainedModel, BertForQuestionAnswering):
    """Start and end of an answer's span."""

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],  # type: ignore[misc]
    ) -> tuple[torch.Tensor, ...] | QuestionAnsweringModelOutput:
        """As `BertForQuestionAnswering.forward`, but logits at padding are their dtype's minimum, so that neither a
        loss nor a reader's softmax or argmax sees them, and the loss is fp32; see `span_loss`."""
        outputs = super().forward(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        real = self._real_tokens(attention_mask, outputs.start_logits)
        start_logits, end_logits = (
            hidden_at_padding(each, real) for each in (outputs.start_logits, outputs.end_logits)
        )
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start_logits, end_logits, start_positions, end_positions, real)
        result = QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return self._returned(result, return_dict)


class LongBertForMultipleChoice(LongBertPreTrainedModel, BertForMultipleChoice):
    """A score for every choice."""
