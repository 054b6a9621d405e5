"""The tiny checkpoints the tests use, by name."""

from __future__ import annotations

import torch

from tests.helpers.tiny import DROP, NO_FILE, Head, Spec

PYLATE = ("[Q] ", "[D] ")
GELU = "torch.nn.modules.activation.GELU"
IDENTITY = "torch.nn.modules.linear.Identity"
EXPANSION = {"strategy": "fixed", "attend": False, "token": None, "length": 16}
POOLING = "sentence_transformers.models.Pooling"
NORMALIZE = "sentence_transformers.models.Normalize"
# Every expansion row of a query this long still sees a real token through a half-window of 16.
SHORT = {"query_maxlen": 16}

VARIANTS: dict[str, Spec] = {
    # Stanford
    "stanford-bert": Spec(),
    "stanford-bert-no-token-ids": Spec(settings={"query_token_id": DROP, "doc_token_id": DROP}),
    "stanford-bert-attend": Spec(settings={"attend_to_mask_tokens": True}),
    "stanford-bert-keeps-punctuation": Spec(settings={"mask_punctuation": False}),
    "stanford-bert-l2": Spec(settings={"similarity": "l2"}),
    "stanford-bert-no-metadata": Spec(settings=NO_FILE),
    "stanford-bert-no-lengths": Spec(settings={"query_maxlen": DROP, "doc_maxlen": DROP}),
    "stanford-bert-old-names": Spec(old_names=True),
    "stanford-bert-no-prefix": Spec(prefix=""),
    "stanford-bert-sharded": Spec(shards=3),
    "stanford-bert-saved-padding": Spec(saved_padding=True),
    "stanford-bert-vocab-txt": Spec(vocab_txt=True),
    "stanford-bert-spare-rows": Spec(spare_rows=5),
    "stanford-bert-half": Spec(dtype=torch.float16),
    "stanford-bert-half-head": Spec(head_dtype=torch.bfloat16),
    "stanford-bert-pickled": Spec(pickled=True),
    "stanford-bert-renamed": Spec(config={"architectures": ["BertModel"]}),
    "stanford-bert-other-seed": Spec(seed=7),
    "stanford-electra": Spec(backbone="electra"),
    "stanford-distilbert": Spec(backbone="distilbert"),
    "stanford-modernbert": Spec(backbone="modernbert", settings=SHORT),
    "stanford-modernbert-attend": Spec(
        backbone="modernbert", settings={"attend_to_mask_tokens": True}
    ),
    "stanford-modernbert-sharded": Spec(backbone="modernbert", settings=SHORT, shards=2),
    "stanford-roberta": Spec(backbone="roberta"),
    "stanford-xlm-roberta": Spec(backbone="xlm-roberta", tokens=("[unused0]", "[unused1]")),
    "stanford-camembert": Spec(backbone="camembert", tokens=("[unused0]", "[unused1]")),
    "stanford-xmod": Spec(backbone="xmod", tokens=("[unused0]", "[unused1]")),
    "stanford-xmod-unknown-markers": Spec(backbone="xmod"),
    # PyLate
    "pylate-bert": Spec("pylate", tokens=PYLATE, pad_is_mask=True),
    "pylate-bert-no-expansion": Spec(
        "pylate", tokens=PYLATE, settings={"do_query_expansion": False}
    ),
    "pylate-bert-expansion-unsaid": Spec(
        "pylate", tokens=PYLATE, settings={"do_query_expansion": DROP}
    ),
    "pylate-bert-no-model-type": Spec("pylate", tokens=PYLATE, settings={"model_type": DROP}),
    "pylate-bert-attend": Spec(
        "pylate", tokens=PYLATE, settings={"attend_to_expansion_tokens": True}
    ),
    "pylate-bert-residual": Spec(
        "pylate", tokens=PYLATE, heads=(Head(64, residual=True), Head(16))
    ),
    "pylate-bert-square-residual": Spec("pylate", tokens=PYLATE, heads=(Head(32, residual=True),)),
    "pylate-bert-gelu-bias": Spec(
        "pylate", tokens=PYLATE, heads=(Head(64, bias=True, activation=GELU), Head(16, bias=True))
    ),
    "pylate-bert-no-markers": Spec("pylate"),
    "pylate-bert-empty-skiplist": Spec("pylate", tokens=PYLATE, settings={"skiplist_words": []}),
    "pylate-bert-prompts": Spec(
        "pylate",
        tokens=PYLATE,
        settings={
            "do_query_expansion": False,
            "prompts": {"query": "search query: ", "document": "search document: "},
        },
    ),
    "pylate-bert-in-folder": Spec("pylate", tokens=PYLATE, folder="0_Transformer"),
    "pylate-bert-old-class": Spec(
        "pylate", tokens=PYLATE, dense_class="pylate.models.Dense", folder="0_Transformer"
    ),
    "pylate-bert-pooling": Spec("pylate", tokens=PYLATE, modules=(POOLING, NORMALIZE)),
    "pylate-bert-sharded": Spec("pylate", tokens=PYLATE, shards=2),
    "pylate-bert-old-names": Spec("pylate", tokens=PYLATE, old_names=True),
    "pylate-bert-saved-padding": Spec("pylate", tokens=PYLATE, saved_padding=True),
    "pylate-bert-half-head": Spec("pylate", tokens=PYLATE, head_dtype=torch.bfloat16),
    "pylate-bert-lower-case": Spec(
        "pylate", tokens=PYLATE, tokenizer="wordpiece-cased", lower_case=True
    ),
    "pylate-bert-foreign-activation": Spec(
        "pylate", tokens=PYLATE, heads=(Head(16, activation="pylate.activations.Identity"),)
    ),
    "pylate-modernbert": Spec(
        "pylate", "modernbert", tokens=PYLATE, settings={"do_query_expansion": False}
    ),
    "pylate-modernbert-expansion": Spec(
        "pylate", "modernbert", tokens=PYLATE, settings={"query_length": 16}, pad_is_mask=True
    ),
    "pylate-modernbert-attend": Spec(
        "pylate", "modernbert", tokens=PYLATE, settings={"attend_to_expansion_tokens": True}
    ),
    "pylate-modernbert-two-layers": Spec(
        "pylate",
        "modernbert",
        tokens=PYLATE,
        heads=(Head(64), Head(12)),
        settings={"do_query_expansion": False},
        lower_case=True,
    ),
    "pylate-modernbert-prompts": Spec(
        "pylate",
        "modernbert",
        tokens=PYLATE,
        settings={
            "do_query_expansion": False,
            "prompts": {"query": "search_query: ", "document": "search_document: "},
        },
    ),
    "pylate-modernbert-blind-rows": Spec(
        "pylate", "modernbert", tokens=PYLATE, config={"local_attention": 8}
    ),
    "pylate-eurobert": Spec(
        "pylate", "eurobert", tokens=PYLATE, settings={"do_query_expansion": False}
    ),
    "pylate-lfm2": Spec("pylate", "lfm2", tokens=PYLATE),
    "pylate-lfm2-bfloat16": Spec("pylate", "lfm2", tokens=PYLATE, dtype=torch.bfloat16),
    "pylate-xlm-roberta": Spec("pylate", "xlm-roberta", tokens=PYLATE),
    "pylate-roberta": Spec("pylate", "roberta", tokens=PYLATE),
    "pylate-distilbert": Spec("pylate", "distilbert", tokens=PYLATE),
    "pylate-xmod": Spec("pylate", "xmod", tokens=PYLATE),
    # Native sentence-transformers
    "native-bert": Spec(
        "native", tokens=PYLATE, native={"query_expansion": EXPANSION, "document_length": 40}
    ),
    "native-bert-attend": Spec(
        "native",
        tokens=PYLATE,
        native={"query_expansion": {**EXPANSION, "attend": True}, "document_length": 40},
    ),
    "native-bert-min": Spec(
        "native",
        tokens=PYLATE,
        native={
            "query_expansion": {**EXPANSION, "strategy": "min", "length": 12},
            "query_length": 24,
            "document_length": 40,
        },
    ),
    "native-bert-min-unbounded": Spec(
        "native",
        tokens=PYLATE,
        native={
            "query_expansion": {**EXPANSION, "strategy": "min", "length": 12},
            "document_length": 40,
        },
    ),
    "native-bert-other-token": Spec(
        "native",
        tokens=PYLATE,
        native={"query_expansion": {**EXPANSION, "token": "[unused2]"}, "document_length": 40},
    ),
    "native-bert-no-expansion": Spec(
        "native", tokens=PYLATE, native={"query_length": 24, "document_length": 40}
    ),
    "native-bert-no-lengths": Spec("native", tokens=PYLATE),
    "native-bert-empty-skiplist": Spec(
        "native", tokens=PYLATE, native={"mask": {"skiplist_words": []}, "document_length": 40}
    ),
    "native-bert-skips-in-queries": Spec(
        "native",
        tokens=PYLATE,
        native={
            "mask": {"skiplist_tasks": ["query", "document"]},
            "query_expansion": EXPANSION,
            "document_length": 40,
        },
    ),
    "native-bert-prompts": Spec(
        "native",
        tokens=PYLATE,
        native={
            "query_length": 24,
            "document_length": 40,
            "prompts": {"query": "[Q] search query: ", "document": "[D] search document: "},
        },
    ),
    "native-bert-no-prompts": Spec(
        "native", native={"query_length": 24, "document_length": 40, "prompts": {}}
    ),
    "native-bert-residual-gelu": Spec(
        "native",
        tokens=PYLATE,
        heads=(Head(64, bias=True, activation=GELU, residual=True), Head(16)),
        native={"query_length": 24, "document_length": 40},
    ),
    "native-bert-sharded": Spec(
        "native", tokens=PYLATE, shards=2, native={"query_length": 24, "document_length": 40}
    ),
    "native-modernbert": Spec(
        "native",
        "modernbert",
        tokens=PYLATE,
        native={"query_length": 24, "document_length": 40},
    ),
    "native-modernbert-expansion": Spec(
        "native",
        "modernbert",
        tokens=PYLATE,
        native={"query_expansion": EXPANSION, "document_length": 40},
    ),
    "native-modernbert-prompts": Spec(
        "native",
        "modernbert",
        tokens=PYLATE,
        native={
            "query_length": 24,
            "document_length": 40,
            "prompts": {"query": "[Q] search_query: ", "document": "[D] search_document: "},
        },
    ),
    # Stanford checkpoints that sentence-transformers opened and saved: the prompt becomes
    # "[unused0] ", whose space the vocabulary does not hold
    "converted-bert": Spec("converted"),
    "converted-modernbert": Spec("converted", "modernbert", settings=SHORT),
    "converted-xlm-roberta": Spec("converted", "xlm-roberta", tokens=("[unused0]", "[unused1]")),
    # No projection at all
    "raw-bert": Spec("raw"),
    "raw-modernbert": Spec("raw", "modernbert"),
    "raw-roberta": Spec("raw", "roberta"),
    # jinaai/jina-colbert-v2
    "jina": Spec(
        backbone="jina",
        tokens=("[QueryMarker]", "[DocumentMarker]"),
        settings={"attend_to_mask_tokens": True, "doc_maxlen": 300},
    ),
    "jina-wrong-markers": Spec(
        backbone="jina",
        tokens=("[QueryMarker]", "[DocumentMarker]"),
        settings={
            "query_token_id": "[unused0]",
            "doc_token_id": "[unused1]",
            "attend_to_mask_tokens": True,
        },
    ),
    "jina-base-20000": Spec(
        backbone="jina",
        tokens=("[QueryMarker]", "[DocumentMarker]"),
        config={"rotary_emb_base": 20000.0},
        settings={"attend_to_mask_tokens": True, "doc_maxlen": 300},
    ),
    "jina-unattended": Spec(
        backbone="jina", tokens=("[QueryMarker]", "[DocumentMarker]"), settings={"doc_maxlen": 300}
    ),
    "jina-bfloat16": Spec(
        backbone="jina",
        tokens=("[QueryMarker]", "[DocumentMarker]"),
        dtype=torch.bfloat16,
        settings={"attend_to_mask_tokens": True},
    ),
    # BAAI/bge-m3
    "flagembedding": Spec("flagembedding", "xlm-roberta", heads=(Head(32, bias=True),)),
    "flagembedding-published": Spec(
        "flagembedding",
        "xlm-roberta",
        heads=(Head(32, bias=True),),
        head_dtype=torch.float16,
        pickled=True,
    ),
    "flagembedding-short": Spec(
        "flagembedding",
        "xlm-roberta",
        heads=(Head(24, bias=True),),
        settings={"model_max_length": 20},
    ),
    # jinaai/jina-colbert-v1-en
    "stanford-jinabert": Spec(backbone="jinabert"),
    "stanford-jinabert-attend": Spec(
        backbone="jinabert", settings={"attend_to_mask_tokens": True, "doc_maxlen": 300}
    ),
    "stanford-jinabert-four-heads": Spec(backbone="jinabert", config={"num_attention_heads": 4}),
    # LiquidAI/LFM2.5-ColBERT-350M
    "pylate-lfm2-bidirectional": Spec("pylate", "lfm2-bidirectional", tokens=PYLATE),
    "pylate-lfm2-bidirectional-attend": Spec(
        "pylate",
        "lfm2-bidirectional",
        tokens=PYLATE,
        settings={"attend_to_expansion_tokens": True},
    ),
    "pylate-lfm2-bidirectional-no-expansion": Spec(
        "pylate", "lfm2-bidirectional", tokens=PYLATE, settings={"do_query_expansion": False}
    ),
    "pylate-lfm2-bidirectional-no-auto-map": Spec(
        "pylate", "lfm2-bidirectional", tokens=PYLATE, config={"auto_map": DROP}
    ),
    # perplexity-ai/pplx-embed-v1-late-0.6b
    "pylate-qwen3-bidirectional": Spec(
        "pylate",
        "qwen3-bidirectional",
        tokens=PYLATE,
        settings={"attend_to_expansion_tokens": True},
    ),
    "pylate-qwen3-bidirectional-unattended": Spec("pylate", "qwen3-bidirectional", tokens=PYLATE),
    "pylate-qwen3-bidirectional-by-key": Spec(
        "pylate",
        "qwen3-bidirectional",
        tokens=PYLATE,
        config={"model_type": "qwen3", "architectures": ["Qwen3Model"], "auto_map": DROP},
        settings={"do_query_expansion": False},
    ),
}
