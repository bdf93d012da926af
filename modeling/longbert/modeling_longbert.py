"""LongBert: BERT's classes with positions past the source's table. Travels to the Hub beside its siblings."""

import copy
from collections.abc import Callable
from os.path import join
from typing import Any, Unpack

import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertPreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions, MaskedLMOutput, ModelOutput
from transformers.models.bert.modeling_bert import BertEmbeddings, BertForPreTrainingOutput, BertSelfAttention
from transformers.utils import TransformersKwargs, logging

from .attention import NAME as LINEAR_ATTENTION
from .attention import Flattening, Shard, Window, global_marks, is_traced, plain_mask, text_ids
from .configuration_longbert import LongBertConfig
from .loading import Loading
from .losses import masked_lm_loss, sentence_pair_loss
from .model_card import STUB, model_card
from .position_embeddings import POSITION_TYPES, PositionEmbedding
from .transplant import register_transplant


logger = logging.get_logger(__name__)


class DoesNotFitError(ValueError, RuntimeError):
    """A source's weights do not fit the model; transformers, which calls that a RuntimeError, has said which."""


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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
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
        self.post_init()

    def _swap_parts(self) -> None:
        """A head's swap: its BertModel for a LongBertModel. A class of a user's that has none yet builds its own after
        this."""
        for name, child in self.named_children():
            if type(child) is BertModel:
                setattr(self, name, LongBertModel(self.config, add_pooling_layer=child.pooler is not None))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PositionEmbedding):
            module.init_weight()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        config: Any = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As transformers', of any architecture that is BERT under other names (`families.py`).

        Where the class holds several encoders and the source one, all of them begin as the source's.

        Raises:
            ValueError: the source is another architecture, its position table does not fit `config`, or its encoder
                did not arrive whole.
        """
        if isinstance(config, BertConfig) and not hasattr(config, "position_type"):
            config = cls.config_class.from_dict(config.to_dict())
        loading = Loading.of(cls, pretrained_model_name_or_path, config, kwargs)
        if loading is not None:
            kwargs["key_mapping"] = {**loading.key_mapping(), **(kwargs.get("key_mapping") or {})} or None
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, config=config, output_loading_info=True, **kwargs
            )
        except RuntimeError as error:
            if "the above report" not in str(error):
                raise
            raise DoesNotFitError(
                f"{pretrained_model_name_or_path or 'the state_dict'} does not fit this {cls.__name__}: the report "
                "above names each weight. Build its config with LongBertConfig.from_pretrained(source, ...)"
            ) from error
        if loading is not None:
            loading.complete(model, info)
        return (model, info) if output_loading_info else model

    def save_pretrained(self, *args: Any, save_original_format: bool = False, **kwargs: Any) -> None:
        """As transformers', but under the names that the model has, not those of the file it was read from.

        Old checkpoints, bert-base-uncased among them, call LayerNorm's weights gamma and beta, and transformers'
        Trainer would not find these again in its own checkpoints: it resumed, and chose its best model, without them.

        Raises:
            ValueError: the config was changed by hand into one that the weights do not fit.
        """
        for encoder in self.long_encoders():
            encoder.refuse_edited_config()
        super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """As transformers', which ends every push here; a card that says nothing is exchanged for ours."""
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
        """Logits of the whole vocabulary where they are asked for; in training with labels nobody reads them."""
        wanted = (labels is None or not self.training) if output_logits is None else output_logits
        return predict(hidden_states) if wanted else None

    def _returned(self, output: ModelOutput, return_dict: bool | None) -> tuple[torch.Tensor, ...] | ModelOutput:
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def long_encoders(self) -> list["LongBertModel"]:
        """Its encoders, itself among them: one for every class of ours, and as many as a user's own class holds."""
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
    """BERT's self-attention, which picks the window's mask or the full one where the masks are explicit."""

    reads_in_full = False

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *args: Any,
        window_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, ...]:
        mask = attention_mask if window_mask is None or self.reads_in_full else window_mask
        return super().forward(hidden_states, mask, *args, **kwargs)


class LongBertModel(LongBertPreTrainedModel, BertModel):
    """BERT's encoder, `[batch_size, seq_length]` token ids to `[batch_size, seq_length, hidden_size]`, past 512.

    With `attn_implementation="longbert"`, the default, a padded or packed batch is flattened into one row before the
    embeddings and padded again after the last layer, so that no padding is computed. Other implementations get
    explicit masks that say the same, at n² memory; so do decoders, `output_attentions`, tracing and compilation.

    Where `sequence_group` is a `torch.distributed` process group, its processes compute a stretch of the flattened row
    each; all are given the same batch, and all get the whole output.
    """

    sequence_group: Any = None

    def _swap_parts(self) -> None:
        self.embeddings = LongBertEmbeddings(self.config)
        for index, layer in enumerate(self.encoder.layer):
            attention = LongBertSelfAttention(self.config, is_causal=self.config.is_decoder, layer_idx=index)
            attention.reads_in_full = index in (self.config.full_attention_layers or [])
            layer.attention.self = attention

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

        Without an `attention_mask`, `position_ids` that go back to 0 inside a row mark packed documents, which do not
        see each other.

        Args:
            global_attention_mask: `[batch_size, seq_length]`, 1 at further tokens that see and are seen by all under
                `config.attention_window`, such as a question's.

        Raises:
            ValueError: the input is longer than `config.max_position_embeddings`.
        """
        inputs = {
            "input_ids": input_ids,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        output = self._encode(inputs, attention_mask, global_attention_mask, **kwargs, return_dict=True)
        if self.config.classifier_pooling == "mean" and self.pooler is not None:
            output.pooler_output = self.pooler(mean_of_texts(output.last_hidden_state, attention_mask)[:, None])
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
        self._refuse_length(tokens.shape[1] + (cache.get_seq_length() if cache is not None else 0))
        if self.config.is_decoder or (attention_mask is not None and attention_mask.dim() != 2):
            return super().forward(attention_mask=attention_mask, **inputs, **kwargs)
        if attention_mask is not None:
            inputs |= self._place(attention_mask, inputs["position_ids"], inputs["token_type_ids"])
        window = self._window(tokens.shape[1])
        if self._needs_plain_masks(kwargs):
            masks = self._plain_masks(attention_mask, inputs["position_ids"], global_attention_mask, tokens, window)
            return super().forward(**inputs, **masks, **kwargs)
        texts = text_ids(attention_mask, inputs["position_ids"], tokens.shape[:2])
        if texts is None and window is None and self.sequence_group is None:
            return super().forward(**inputs, **kwargs)
        if texts is None:
            texts = torch.arange(len(tokens), device=tokens.device)[:, None].expand(tokens.shape[:2])
        return self._forward_flat(inputs, Flattening(texts), global_attention_mask, window, **kwargs)

    def _forward_flat(
        self,
        inputs: dict[str, torch.Tensor | None],
        flattening: Flattening,
        global_attention_mask: torch.Tensor | None,
        window: Window | None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Run the encoder on the real tokens alone, as one row."""
        if inputs["position_ids"] is None:
            inputs["position_ids"] = self.embeddings.position_ids[:, : flattening.shape[1]]
        shard = None if self.sequence_group is None else Shard(len(flattening.index), self.sequence_group)
        layout = flattening.layout(window, self.config.global_tokens, global_attention_mask, shard)
        flat = {name: flattening.flatten(tensor) for name, tensor in inputs.items()}
        if shard is not None:
            flat = {name: shard.take(tensor) for name, tensor in flat.items()}
        output = super().forward(**flat, layout=layout, **kwargs)

        def whole(states: torch.Tensor | None) -> torch.Tensor | None:
            if states is None:  # of a layer that `output_hidden_states=[...]` does not name
                return None
            return flattening.pad(states if shard is None else shard.gather(states, dim=1))

        output.last_hidden_state = whole(output.last_hidden_state)
        if output.hidden_states is not None:
            output.hidden_states = tuple(map(whole, output.hidden_states))
        if self.pooler is not None:
            output.pooler_output = self.pooler(output.last_hidden_state)
        return output

    def _needs_plain_masks(self, kwargs: dict[str, Any]) -> bool:
        return (
            self.config._attn_implementation != LINEAR_ATTENTION
            or kwargs.get("output_attentions", self.config.output_attentions)
            or is_traced()
        )

    def _plain_masks(
        self,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        global_attention_mask: torch.Tensor | None,
        tokens: torch.Tensor,
        window: Window | None,
    ) -> dict[str, torch.Tensor | None]:
        """What BERT's own attention is to be told: nothing more than it knows, unless packed or windowed."""
        shape = tokens.shape[:2]
        texts = None if attention_mask is not None else text_ids(None, position_ids, shape)
        if window is None and texts is None:
            return {"attention_mask": attention_mask}
        if texts is None:
            rows = torch.arange(shape[0], device=tokens.device)[:, None].expand(shape)
            texts = rows if attention_mask is None else torch.where(attention_mask.bool(), rows, -1)
        marked = global_marks(texts, self.config.global_tokens, global_attention_mask)
        full = self._as_implemented(plain_mask(texts, marked, None))
        windowed = None if window is None else self._as_implemented(plain_mask(texts, marked, window))
        return {"attention_mask": full, "window_mask": windowed}

    def _as_implemented(self, mask: torch.Tensor) -> torch.Tensor:
        implementation = self.config._attn_implementation
        if implementation == "eager":
            return torch.zeros_like(mask, dtype=self.dtype).masked_fill(~mask, torch.finfo(self.dtype).min)
        if implementation not in ("sdpa", LINEAR_ATTENTION):
            raise ValueError(
                f"a window or packed documents need attn_implementation 'longbert', 'sdpa' or 'eager', got "
                f"{implementation!r}"
            )
        return mask

    def _window(self, seq_length: int) -> Window | None:
        """The window, where any text of the batch can be long enough for it; what is exported serves every length."""
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

    def _place(
        self,
        attention_mask: torch.Tensor,
        position_ids: torch.LongTensor | None,
        token_type_ids: torch.LongTensor | None,
    ) -> dict[str, torch.LongTensor | None]:
        """Positions that count from the first attended token, so that padding on the left moves nothing.

        With `zero_padding_positions`, padding stands at position -1; segments are then given too, as BERT looks absent
        ones up by position.
        """
        if position_ids is None:
            first = attention_mask.long().argmax(-1, keepdim=True)
            position_ids = (self.embeddings.position_ids[:, : attention_mask.shape[1]] - first).clamp(min=0)
        if self.config.zero_padding_positions:
            position_ids = position_ids.expand(attention_mask.shape).masked_fill(attention_mask == 0, -1)
            if token_type_ids is None:
                token_type_ids = torch.zeros_like(position_ids)
        return {"position_ids": position_ids, "token_type_ids": token_type_ids}


def mean_of_texts(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The mean vector `[batch_size, hidden_size]` of each text's own tokens."""
    if attention_mask is None or attention_mask.dim() != 2:
        return hidden_states.mean(dim=1)
    real = attention_mask[:, :, None].to(hidden_states.dtype)
    return (hidden_states * real).sum(dim=1) / real.sum(dim=1)


class LongBertForPreTraining(LongBertPreTrainedModel, BertForPreTraining):
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


class LongBertForMaskedLM(LongBertPreTrainedModel, BertForMaskedLM):
    """MLM head, with a loss that pays only for labelled positions and means the same for any split of a batch."""

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
        loss = None
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


class LongBertForQuestionAnswering(LongBertPreTrainedModel, BertForQuestionAnswering):
    """Start and end of an answer's span."""


class LongBertForMultipleChoice(LongBertPreTrainedModel, BertForMultipleChoice):
    """A score for every choice."""
