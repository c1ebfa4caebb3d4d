"""Tables from EasyRec's and TorchEasyRec's settings to those of a scenario; `easyrec` reads them.

A path is written as in the config, without the index of a repeated message: feature_configs.id_feature.embedding_dim.
"""

from __future__ import annotations

# The kind of feature that each of their types becomes. A type that is not listed here is left out.
KINDS = {
    "id_feature": "id",
    "tag_feature": "ids",
    "sequence_feature": "ids",
    "sequence_id_feature": "ids",
    "raw_feature": "number",
    "combo_feature": "cross",
    "expr_feature": "number",
}
IN_LOG = "compute it where the log is written, as a column"
TYPES_LEFT_OUT = {
    "bm25_feature": f"compares two texts; {IN_LOG}",
    "text_normalizer": f"rewrites a text; {IN_LOG}",
    "custom_feature": "is code of your own; register it as a function of Python, and write custom.NAME(...) in `of`",
    "pass_through_feature": f"is a vector; {IN_LOG}",
    "sequence_raw_feature": "is a list of numbers, which no kind of feature reads; use their count or mean as a column",
}

TYPES = {
    **dict.fromkeys(("int32", "int64", "int", "integer", "bigint", "long"), "int"),
    **dict.fromkeys(("float", "double"), "float"),
    **dict.fromkeys(("string", "str"), "string"),
    **dict.fromkeys(("bool", "boolean"), "bool"),
    **dict.fromkeys(("array_int32", "array_int64"), "list[int]"),
    **dict.fromkeys(("array_string",), "list[string]"),
    **dict.fromkeys(("array_float", "array_double"), "list[float]"),
}
NORMAL = ("TEXT_LOWER2UPPER", "TEXT_UPPER2LOWER", "TEXT_SBC2DBC", "TEXT_FILTER", "TEXT_SPLITCHRS", "TEXT_REMOVE_SPACE")
"""Options of text_normalizer that `tokenize(lower(normalize(text)))` fulfils."""
FORMATS = {
    **dict.fromkeys(("CSVInput", "CSVInputV2", "CSVInputEx", "CsvDataset"), "csv"),
    **dict.fromkeys(
        ("ParquetInput", "ParquetInputV2", "ParquetInputV3", "HiveParquetInput", "ParquetDataset"), "parquet"
    ),
}

# Functions that expressions lack, written with those that they have.
FUNCTIONS = {
    "log": "log1p({0} - 1)",
    "ln": "log1p({0} - 1)",
    "log10": "(log1p({0} - 1) / 2.302585092994046)",
    "log2": "(log1p({0} - 1) / 0.6931471805599453)",
    "fabs": "abs({0})",
    "isnan": "({0} is None)",
    "len": "length({0})",
    "sign": "(1 if {0} > 0 else -1 if {0} < 0 else 0)",
    "sigmoid": "(1 / (1 + exp(-{0})))",
    "tanh": "(2 / (1 + exp(-2 * {0})) - 1)",
    **{f"reduce_{how}": f"combine({{0}}, {how!r})" for how in ("sum", "mean", "min", "max")},
}
REWRITES = (  # of C's operators, in this order
    (r"\A(.+)\?\s*1(?:\.0*)?\s*:\s*0(?:\.0*)?\s*\Z", r"(\1)"),
    (r"&&?", " and "),
    (r"\|\|?", " or "),
    # The one operator of Python's that binds as close as C's `!`: !a == b is (!a) == b.
    (r"!(?!=)", " ~"),
)
NORMALIZERS = {  # of `normalizer: "method=NAME,..."`, with the defaults of its numbers
    "log10": ("coalesce(log1p({x} - 1) / 2.302585092994046, {default})", {"threshold": 1e-10, "default": -10.0}),
    "zscore": ("({x} - {mean}) / {standard_deviation}", {"mean": 0.0, "standard_deviation": 1.0}),
    "minmax": ("({x} - {min}) / ({max} - {min})", {"min": 0.0, "max": 1.0}),
}
NORMALIZER_FUNCTIONS = {
    "tf.math.log1p": "log1p({x})",
    "tf.log1p": "log1p({x})",
    "tf.math.log": "log1p({x} - 1)",
    "tf.log": "log1p({x} - 1)",
    "tf.abs": "abs({x})",
}

EMBEDDING = (  # a path below the feature, and the setting of its `embedding`
    ("ev_params.filter_freq", "min_count"),
    ("dynamicemb.frequency_admission_strategy.threshold", "min_count"),
    ("ev_params.max_capacity", "capacity"),
    ("dynamicemb.max_capacity", "capacity"),
    ("zch.zch_size", "capacity"),
)

# A model's class: the architecture, and what is different (empty: nothing that matters).
_NO_ATTENTION = "lists are averaged, without attention to the item"
_CROSSES = "the nearest of Recloop's, with crosses of features"
_RANKING = "Recloop ranks given items; retrieval is not a part of it"
ARCHITECTURES = {
    "deepfm": ("deepfm", ""),
    "fm": ("deepfm", "with layers beside the products"),
    "wideanddeep": ("deepfm", "with products of features beside the wide part"),
    "xdeepfm": ("dcnv2", _CROSSES),
    "dcn": ("dcnv2", "crosses have matrices, not vectors"),
    "dcnv1": ("dcnv2", "crosses have matrices, not vectors"),
    "dcnv2": ("dcnv2", ""),
    "masknet": ("dcnv2", _CROSSES),
    "autoint": ("dcnv2", _CROSSES),
    "fibinet": ("dcnv2", _CROSSES),
    "wukong": ("dcnv2", _CROSSES),
    "dlrm": ("dlrm", ""),
    "multitower": ("shared_bottom", "one tower reads all groups"),
    "multitowerdin": ("shared_bottom", f"one tower reads all groups; {_NO_ATTENTION}"),
    "multitowerbst": ("shared_bottom", f"one tower reads all groups; {_NO_ATTENTION}"),
    "simplemultitask": ("shared_bottom", ""),
    "mmoe": ("mmoe", ""),
    "ple": ("mmoe", "experts are shared by all tasks"),
    "dbmtl": ("shared_bottom", "towers of tasks do not read each other"),
    "esmm": ("shared_bottom", "each label is learned on all rows that have it"),
    **dict.fromkeys(("dssm", "dssmv2", "dssmsenet", "mind", "dat", "tdm", "dropoutnet"), ("shared_bottom", _RANKING)),
}
# Where each setting of `model` is found below the model's message; the first that is there counts.
LAYERS = {
    "bottom": "expert_mlp expert_dnn bottom_mlp bottom_dnn dense_mlp bot_dnn deep dnn deep_tower.dnn towers.mlp "
    "towers.dnn backbone mask_net_module.top_mlp",
    "tower": "task_towers.mlp task_towers.dnn final top_dnn final_dnn",
}
MODEL = (
    ("num_expert", "num_experts"),
    ("cross.cross_num", "cross_layers"),
    ("cross_tower.cross_num", "cross_layers"),
    ("cross.low_rank", "cross_rank"),
)

_DENSE, _SPARSE = "train_config.dense_optimizer", "train_config.sparse_optimizer"
_RATES = (
    "constant_learning_rate.learning_rate",
    "exponential_decay_learning_rate.initial_learning_rate",
    "manual_step_learning_rate.initial_learning_rate",
    "cosine_decay_learning_rate.learning_rate_base",
    "poly_decay_learning_rate.learning_rate_base",
    "transformer_learning_rate.learning_rate_base",
)
_ONE = "train_config.optimizer_config"
_ADAMS = ("adam_optimizer", "adamw_optimizer", "lazy_adam_optimizer", "adam_async_optimizer")
# A path (* is one name of a message), and the setting of `train`; the first that is there counts.
TRAIN = (
    ("data_config.batch_size", "batch_size"),
    *((f"{_DENSE}.{adam}.lr", "learning_rate") for adam in _ADAMS),
    *((f"{_ONE}.{adam}.learning_rate.{path}", "learning_rate") for adam in _ADAMS for path in _RATES),
    (f"{_SPARSE}.*.lr", "embedding_learning_rate"),
    (f"{_DENSE}.*.weight_decay", "weight_decay"),
    (f"{_ONE}.*.weight_decay", "weight_decay"),
    ("train_config.grad_clipping.max_gradient", "clip_norm"),
    ("train_config.gradient_clipping_by_norm", "clip_norm"),
)
PRECISIONS = {"BF16": "bfloat16", "FP16": "float16"}
SPARSE_OPTIMIZERS = {
    "sgd_optimizer": "sgd",
    "adagrad_optimizer": "adagrad",
    "rowwise_adagrad_optimizer": "rowwise_adagrad",
    "adam_optimizer": "adam",
}

# Settings with these values ask for what Recloop does anyway.
AS_ALWAYS = (
    (r".*\.(dense_optimizer|optimizer_config)\.adamw?_optimizer", ()),
    (r".*\.constant_learning_rate", ()),
    (r".*\.(metrics|metrics_set)\.(auc|gauc)", ()),
    (r".*\.losses\.binary_cross_entropy", ()),
    (r".*\.loss_type", "CLASSIFICATION"),
    (r".*\.num_class", 1),
    (r".*\.(pooling|combiner)", "mean"),
    (r".*\.clipping_type", "norm"),
    (r".*\.(trainable|data_config\.shuffle)", True),
    (r".*\.(stub_type|is_multi|weighted|needWeighting|ignore_error|use_moving_average)", False),
    (r".*\.(default_value|default_val|separator|normalizer|embedding_name|wide_output_dim)", ""),
    (r"(.*\.)?(raw_input_dim|value_dim|value_dimension|input_dim)", 1),
    (r"train_config\.(num_epochs|num_steps)", 1),
    (r"data_config\.num_epochs", 1),
)

# Why a setting was not carried over and what to do: the first pattern that is its whole path counts.
_FEATURE = r"(?:feature_configs?|features)(?:\..*)?"
REASONS = (
    (
        r".*\.(hash_bucket_size|num_buckets|bucketize_boundaries)",
        "ids are kept whole and a table grows with them; `embedding: {capacity: N}` bounds it",
    ),
    (
        r".*\.(vocab_\w+|asset_dir|default_bucketize_value)(\..*)?",
        "ids need no vocabulary; to refuse rows with other values, list the allowed ones in the column's `values`",
    ),
    (
        r".*\.(default_value|default_val|fg_encoded_default_value|fill_missing)",
        "a missing value stays null, which the model knows as such; `of: coalesce(COLUMN, VALUE)` fills it",
    ),
    (_FEATURE + r"\.(pooling|combiner)", "the embeddings of a sequence are averaged, one id has none; nothing to do"),
    (
        _FEATURE + r"\.embedding_dim(ension)?",
        "all tables have one dimension, model.embedding_dim; raise it if wide ids matter",
    ),
    (_FEATURE + r"\.embedding_name", "only id and ids features of the same type share a table; check `table`"),
    (
        _FEATURE + r"\.(sequence_length|max_seq_len|sequence_(pk|table|column)|attribute_delim)",
        "the whole list is read; "
        "cut it in the log, or let Recloop build it: {kind: sequence, of: ITEM, by: USER, length: N}",
    ),
    (_FEATURE + r"\.sequence_combiner(\..*)?", "the embeddings of a list are averaged"),
    (_FEATURE + r"\.combo_(join_sep|input_seps)", "columns are combined as they are, without splitting them"),
    (_FEATURE + r"\.extra_combo_info\..*", "declare the combination yourself: {kind: cross, of: [COLUMN, COLUMN]}"),
    (_FEATURE + r"\.separator", "a column of one value has no separator; nothing to do"),
    (_FEATURE + r"\.(normalizer\w*|min_val|max_val)", "not one that expressions can write; write it in `of`"),
    (_FEATURE + r"\.boundaries", "steps are made of at most 100 numbers; `buckets` makes even steps"),
    (_FEATURE + r"\.tokenizer_type", "words are ids themselves, without a vocabulary of parts of words"),
    (_FEATURE + r"\.text_normalizer\..*", "only letters of full width and capitals are made alike"),
    (_FEATURE + r"\.(autodis|mlp)(\..*)?", "numbers are read as they are; `buckets` embeds one too"),
    (_FEATURE + r"\.(ev_params|zch|dynamicemb)(\..*)?", "`embedding` has min_count, ttl_days and capacity alone"),
    (
        _FEATURE + r"\.(group|value_type|fg_value_type|is_multi|need\w+|sequence_fields|max_partitions|precision)",
        "Recloop reads the column as its declared type; check data.events.columns",
    ),
    (
        _FEATURE + r"\.(init\w*|trainable|use_mask|data_type|embedding_constraints)(\..*)?",
        "Recloop has no such setting of a table; nothing to do",
    ),
    (
        r"(.*\.)?feature_groups?\..*|model_config\.seq_att_groups\..*",
        "one network reads all enabled features, and lists are averaged; set `enabled` to choose",
    ),
    (
        r"model_config\..*(losses|loss_type|num_class|kd)(\..*)?",
        "each label is a condition, learned with binary cross entropy; write other goals as conditions",
    ),
    (
        r"(model_config|eval_config)\..*metrics(_set)?(\..*)?",
        "AUC, GAUC, normalized entropy and calibration are always computed; nothing to do",
    ),
    (r"model_config\..*regulari[sz]ation", "there is train.weight_decay instead, on dense weights alone"),
    (
        r"model_config\..*(relation|task_space|sample_weight|pareto|weight_strategy)\w*(\..*)?",
        "tasks are learned independently above the shared layers; choose train.task_weights",
    ),
    (
        r"model_config\..*\.(activation|use_bn|use_ln|bias|dropout_ratio)",
        "layers are ReLU without normalization, with one dropout, model.dropout",
    ),
    (r"model_config\..*task_towers\.\w+\.hidden_units", "the towers of all tasks are alike, as model.tower says"),
    (r"model_config\..*", "the architecture has no such part; compare architectures with `recloop try`"),
    (r"train_config\.grad_clipping\..*", "train.clip_norm shortens gradients by their norm, and nothing else does"),
    (
        r"train_config\..*(learning_rate|lr|decay|burnin|warmup|schedule)\w*(\..*)?",
        "rates are constant; train.warmup_steps lets them rise at first",
    ),
    (
        r"train_config\..*optimizer\w*(\..*)?",
        "dense weights are learned with AdamW, tables with "
        "train.embedding_optimizer; other settings of theirs are fixed",
    ),
    (
        r"train_config\.num_(steps|epochs)|data_config\.num_epochs",
        "each day is learned once, from yesterday's weights; nothing to do",
    ),
    (r"train_config\..*", "the daily loop decides this itself (checkpoints, logs, resources); nothing to do"),
    (
        r"data_config\.(fg_mode|fg_encoded\w*)",
        "features are computed from raw columns; give Recloop the log before it was encoded",
    ),
    (
        r"data_config\.(input_type|dataset_type)",
        "Recloop reads CSV, Parquet and JSON lines; export the table as Parquet",
    ),
    (
        r"data_config\.\w*sampler(\..*)?",
        "join.negative_sampler draws negative rows from the items of the log; set its num_sample",
    ),
    (
        r"data_config\.sample_weight\w*",
        "train.value_weights weighs positive rows by a value of another log, train.task_weights whole labels",
    ),
    (
        r"data_config\.input_fields\.\w+",
        "no feature that was carried over reads this column; declare it in "
        "data.events.columns if an expression needs it",
    ),
    (r"data_config\.(label|extra_label)\w+(\..*)?", "a label is a condition over columns; write it below `labels`"),
    (r"data_config\..*", "reading is up to `ingest`; nothing to do"),
    (
        r"(eval_config|export_config|model_dir|edit_config_json|\w*eval\w*_input\w*)(\..*)?",
        "each day is evaluated on its own last rows and exported by the daily loop; nothing to do",
    ),
    (r"\w*(input_path|_input)(\..*)?", "name the folder of the log in data.path"),
    (r"fg_json_path", "port that file too: `recloop init --from-easyrec` reads fg.json"),
)
# Settings that the files of the log answer, where they are given.
IN_FILES = (
    r"train_input_path|data_config\.(input_fields\.input_\w+|input_\w+|dataset_type|separator|delimiter|with_header)"
)
NOTHING = "nothing to do"
UNKNOWN = "not a setting that Recloop knows; look up its effect, and decide by hand"
