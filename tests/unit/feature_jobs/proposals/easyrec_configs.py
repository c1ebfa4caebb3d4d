"""Pipeline configs as people write them for EasyRec and TorchEasyRec, and an fg.json."""

# EasyRec: all features in one message, a CSV without a header, one label.
OLD_DEEPFM = """
train_input_path: "logs/ctr_train.csv"   # of a laptop
model_dir: 'experiments/ctr'
train_config {
  optimizer_config: {
    adam_optimizer: {
      learning_rate: {
        exponential_decay_learning_rate { initial_learning_rate: 0.0005 decay_steps: 9000 decay_factor: 0.5 }
      }
    }
    use_moving_average: false
  }
  num_steps: 2500
  sync_replicas: true
}
eval_config { metrics_set: { auc {} } }
data_config {
  separator: ";"
  input_fields: { input_name: "click" input_type: INT32 }
  input_fields: { input_name: "ts" input_type: INT64 }
  input_fields: { input_name: "uid" input_type: STRING }
  input_fields: { input_name: "item_id" input_type: INT64 default_val: "0" }
  input_fields: { input_name: "age" input_type: INT32 }
  input_fields: { input_name: "price" input_type: DOUBLE }
  input_fields: { input_name: "tags" input_type: STRING }
  input_fields: { input_name: "tag_kv" input_type: STRING }
  input_fields: { input_name: "class" input_type: STRING }
  input_fields: { input_name: "debug" input_type: STRING }
  label_fields: "click"
  batch_size: 1024
  input_type: CSVInput
}
feature_config: {
  features: { input_names: "uid" feature_type: IdFeature embedding_dim: 8 hash_bucket_size: 100000 }
  features: { input_names: "item_id" feature_type: IdFeature embedding_dim: 8 num_buckets: 5000
              ev_params { filter_freq: 3 max_capacity: 20000 steps_to_live: 9 } }
  features: { input_names: "age" feature_type: RawFeature boundaries: [18, 25, 35.5] embedding_dim: 8 }
  features: { input_names: "price" feature_type: RawFeature min_val: 0 max_val: 250 }
  features: { feature_name: "price_log" input_names: "price" feature_type: RawFeature normalizer_fn: "tf.math.log1p" }
  features: { input_names: "tags" feature_type: TagFeature separator: "," embedding_dim: 4 combiner: "mean"
              hash_bucket_size: 900 }
  features: { input_names: "tag_kv" feature_type: TagFeature separator: "," kv_separator: "=" embedding_dim: 8 }
  features: { input_names: "class" feature_type: IdFeature embedding_dim: 8 vocab_list: ["a", "b"] }
  features: { feature_name: "age_class" input_names: ["age", "class"] feature_type: ComboFeature embedding_dim: 8 }
  features: { feature_name: "adult" input_names: "age" feature_type: ExprFeature expression: "(age>=18) & (age<99)" }
}
model_config: {
  model_class: "DeepFM"
  feature_groups: {
    group_name: "deep" wide_deep: WIDE_AND_DEEP
    feature_names: ["uid", "item_id", "age", "price", "tags", "class", "age_class", "adult", "gone"]
  }
  deepfm { dnn { hidden_units: [96, 48] } final_dnn { hidden_units: [24] } l2_regularization: 1e-5 }
  embedding_regularization: 1e-7
}
"""

# EasyRec: a message for each feature, two tasks, histories as lists with attention, shared tables.
OLD_DBMTL = """
train_input_path: "odps://shop/tables/exposures"
train_config {
  optimizer_config { adam_optimizer { learning_rate { constant_learning_rate { learning_rate: 0.002 } } } }
}
data_config {
  batch_size: 4096
  label_fields: "clk"
  label_fields: "buy"
  label_fields: "stay"
  input_type: OdpsInputV2
  input_fields { input_name: "clk" input_type: INT32 }
  input_fields { input_name: "buy" input_type: STRING }
  input_fields { input_name: "user_id" input_type: STRING }
  input_fields { input_name: "brand" input_type: STRING }
  input_fields { input_name: "cate" input_type: STRING }
  input_fields { input_name: "brand_list" input_type: STRING }
}
feature_configs { input_names: "user_id" feature_type: IdFeature embedding_dim: 16 hash_bucket_size: 100000 }
feature_configs { input_names: "brand" feature_type: IdFeature embedding_dim: 16 embedding_name: "brand"
                  hash_bucket_size: 5000 }
feature_configs { input_names: "cate" feature_type: IdFeature embedding_dim: 16 shared_names: "second_cate" }
feature_configs { input_names: "brand_list" feature_type: SequenceFeature separator: "|" embedding_dim: 16
                  embedding_name: "brand" max_seq_len: 50 sequence_combiner { attention {} } }
feature_configs { input_names: "price_list" feature_type: SequenceFeature sub_feature_type: RawFeature }
feature_configs { input_names: ["kv", "cate"] feature_type: LookupFeature embedding_dim: 16 }
model_config {
  model_class: "DBMTL"
  feature_groups {
    group_name: "all"
    feature_names: "user_id" feature_names: "brand" feature_names: "cate" feature_names: "second_cate"
    sequence_features { seq_att_map { key: "brand" hist_seq: "brand_list" } }
  }
  dbmtl {
    bottom_dnn { hidden_units: [256, 128] }
    task_towers { tower_name: "ctr" label_name: "clk" dnn { hidden_units: [64, 32] } loss_type: CLASSIFICATION
                  weight: 1.0 }
    task_towers { tower_name: "cvr" label_name: "buy" dnn { hidden_units: [64, 32] } weight: 2.5
                  relation_tower_names: ["ctr"] relation_dnn { hidden_units: [16] } }
  }
}
"""

# TorchEasyRec: numbers with normalizers, tables of their own optimizer, mixed precision.
TORCH_DLRM = """
train_config {
    sparse_optimizer { rowwise_adagrad_optimizer { lr: 0.02 } constant_learning_rate { } }
    dense_optimizer { adamw_optimizer { lr: 1e-3 weight_decay: 0.01 } constant_learning_rate { } }
    num_epochs: 1
    mixed_precision: "BF16"
    grad_clipping { clipping_type: "norm" max_gradient: 5.0 }
}
data_config { batch_size: 8192 dataset_type: ParquetDataset fg_mode: FG_DAG label_fields: "label" num_workers: 8 }
feature_configs { raw_feature { feature_name: "int_0" expression: "user:int_0"
                                normalizer: "method=expression,expr=log(x+3)" } }
feature_configs { raw_feature { feature_name: "int_1" expression: "item:int_1"
                                normalizer: "method=log10,threshold=1e-10,default=-10" } }
feature_configs { raw_feature { feature_name: "int_2" expression: "item:int_2"
                                normalizer: "method=zscore,mean=-1.5,standard_deviation=10.0" } }
feature_configs { raw_feature { feature_name: "int_3" expression: "item:int_3"
                                normalizer: "method=expression,expr=tanh(x)" } }
feature_configs { raw_feature { feature_name: "int_5" expression: "item:int_5"
                                normalizer: "method=log10,threshold=1,default=0" } }
feature_configs { raw_feature { feature_name: "int_4" expression: "item:int_4" boundaries: 0.5 embedding_dim: 16 } }
feature_configs { raw_feature { feature_name: "vector" expression: "item:vector" value_dim: 64 } }
feature_configs { id_feature { feature_name: "cat_0" expression: "user:cat_0" num_buckets: 108 embedding_dim: 16 } }
feature_configs { id_feature { feature_name: "cat_1" expression: "item:cat_1" embedding_dim: 16 pooling: "mean"
                               hash_bucket_size: 36 } }
model_config {
    feature_groups { group_name: "dense" feature_names: "int_0" feature_names: "int_1" feature_names: "int_2"
                     feature_names: "int_3" feature_names: "int_4" group_type: DEEP }
    feature_groups { group_name: "sparse" feature_names: "cat_0" feature_names: "cat_1" group_type: DEEP }
    dlrm { dense_mlp { hidden_units: 64 hidden_units: 16 } final { hidden_units: [64, 32] } arch_with_sparse: true }
    num_class: 1
    metrics { auc { thresholds: 1000 } }
    losses { binary_cross_entropy {} }
}
"""

# TorchEasyRec: grouped sequences, limits of tables, expressions, types that Recloop lacks.
TORCH_MMOE = r"""
train_config {
  sparse_optimizer { adam_optimizer { lr: 0.001 beta1: 0.9 } constant_learning_rate {} }
  dense_optimizer { adam_optimizer { lr: 0.001 } constant_learning_rate {} }
}
data_config {
  batch_size: 2048 dataset_type: OdpsDataset fg_encoded_multival_sep: "\x1d" label_fields: ["clk", "buy"]
  input_fields { input_name: "shown_at" input_type: STRING }
  input_fields { input_name: "vectors" input_type: ARRAY_FLOAT }
}
feature_configs { id_feature { feature_name: "user_id" expression: "user:user_id" embedding_dim: 16
  dynamicemb { max_capacity: 1000000 score_strategy: "LFU" frequency_admission_strategy { threshold: 2 } } } }
feature_configs { id_feature { feature_name: "ad_id" expression: "item:ad_id" embedding_dim: 16 num_buckets: 900
                               embedding_name: "ad" } }
feature_configs { id_feature { feature_name: "Cats" expression: "item:cats" embedding_dim: 8 value_dim: 0 } }
feature_configs { id_feature { feature_name: "weights" expression: "item:w" embedding_dim: 8 weighted: true } }
feature_configs { raw_feature { feature_name: "vectors" expression: "item:vectors" } }
feature_configs { combo_feature { feature_name: "os_cat" expression: ["user:os", "item:cat"] embedding_dim: 16 } }
feature_configs { expr_feature { feature_name: "same_age" expression: "u_age == i_age ? 1 : 0"
                                 variables: ["user:u_age", "item:i_age"] } }
feature_configs { expr_feature { feature_name: "ctr" expression: "click / (1 + log(pv))"
                                 variables: ["item:click", "item:pv"] } }
feature_configs { expr_feature { feature_name: "far" expression: "haversine(a, b, c, d)" variables: ["item:a"] } }
feature_configs { lookup_feature { feature_name: "kv" map: "user:kv" key: "item:cat" embedding_dim: 16 } }
feature_configs { overlap_feature { feature_name: "title" query: "user:q" title: "item:t" method: "is_contain" } }
feature_configs { hologram_feature { feature_name: "new" expression: "item:new" } }
feature_configs { id_feature { feature_name: "of_feature" expression: "feature:same_age" embedding_dim: 16 } }
feature_configs {
  sequence_feature {
    sequence_name: "click_50_seq" sequence_length: 50 sequence_delim: "|"
    features { id_feature { feature_name: "ad_id" expression: "item:ad_id" embedding_dim: 16 num_buckets: 900
                            embedding_name: "ad" } }
    features { raw_feature { feature_name: "price" expression: "item:price" } }
  }
}
model_config {
  feature_groups {
    group_name: "all" group_type: DEEP
    feature_names: "user_id" feature_names: "ad_id" feature_names: "Cats" feature_names: "os_cat"
    feature_names: "same_age" feature_names: "ctr" feature_names: "kv"
    sequence_groups { group_name: "click_50_seq" feature_names: "ad_id" feature_names: "click_50_seq__ad_id" }
    sequence_encoders { din_encoder { attn_mlp { hidden_units: [32, 8] } } }
  }
  mmoe {
    expert_mlp { hidden_units: [128, 64] dropout_ratio: [0.1, 0.1] activation: "nn.ReLU" }
    gate_mlp { hidden_units: 32 }
    num_expert: 6
    task_towers { tower_name: "ctr" label_name: "clk" mlp { hidden_units: [32] } losses { binary_cross_entropy {} } }
    task_towers { tower_name: "cvr" label_name: "buy" mlp { hidden_units: [48] } losses { jrc_loss {} } }
  }
}
"""

# TorchEasyRec: crosses, lists as columns, a table with a bound, no feature group with one of the features.
TORCH_DCN = """
train_input_path: "data/exposures/*.parquet"
train_config {
  sparse_optimizer { adagrad_optimizer { lr: 0.001 } manual_step_learning_rate { schedule_sizes: [100] } }
  dense_optimizer { sgd_optimizer { lr: 0.01 } }
}
data_config { dataset_type: ParquetDataset label_fields: "is_click"
  input_fields_str: "is_click:BIGINT;user_id:BIGINT;request_time:BIGINT" }
feature_configs { id_feature { feature_name: "user_id" expression: "user:user_id" embedding_dim: 12
                               zch { zch_size: 4096 eviction_interval: 5 lru { decay_exponent: 1.0 } } } }
feature_configs { id_feature { feature_name: "video_id" expression: "item:video_id" embedding_dim: 12 } }
feature_configs { sequence_id_feature { feature_name: "seen" expression: "user:seen" sequence_length: 20
                                        sequence_delim: "," embedding_dim: 12 } }
feature_configs { sequence_raw_feature { feature_name: "seen_s" expression: "user:seen_s" } }
feature_configs { id_feature { feature_name: "unused" expression: "user:unused" embedding_dim: 12 } }
feature_configs { id_feature { feature_name: "hidden" expression: "user:hidden" embedding_dim: 12 stub_type: true } }
model_config {
  feature_groups { group_name: "deep" feature_names: "user_id" feature_names: "video_id" feature_names: "seen"
                   feature_names: "hidden" group_type: DEEP }
  dcn_v2 {
    cross { cross_num: 4 low_rank: 32 }
    deep { hidden_units: [64, 64] }
    final { hidden_units: [32] }
  }
}
"""

FG_JSON = r"""
{
  "features": [
    {"feature_type": "id_feature", "feature_name": "user_id", "expression": "user:user_id", "value_type": "String",
     "embedding_dimension": 16, "group": "user"},
    {"feature_type": "id_feature", "feature_name": "article_id", "expression": "item:article_id",
     "value_type": "Integer", "hash_bucket_size": 1000, "embedding_dimension": 16},
    {"feature_type": "id_feature", "feature_name": "topics", "expression": "item:topics", "is_multi": true},
    {"feature_type": "raw_feature", "feature_name": "words", "expression": "item:words", "normalizer": "method=log10"},
    {"feature_type": "combo_feature", "feature_name": "city_topic", "expression": ["user:city", "item:topic"]},
    {"feature_type": "match_feature", "feature_name": "m", "user": "user:m", "category": "ALL", "item": "item:brand",
     "needDiscrete": false},
    {"sequence_name": "read_50", "sequence_length": 50, "sequence_delim": ";", "attribute_delim": "#", "features": [
       {"feature_type": "id_feature", "feature_name": "article_id", "expression": "item:article_id"},
       {"feature_type": "raw_feature", "feature_name": "age", "expression": "item:age"}]}
  ],
  "reserves": ["user_id", "clk", "log_time"],
  "multi_val_sep": "\u001d"
}
"""

# TorchEasyRec: the types that compute texts, maps, lists and vectors.
TORCH_TRANSFORMS = r"""
data_config { dataset_type: ParquetDataset label_fields: "clk" }
feature_configs { id_feature { feature_name: "user_id" expression: "user:user_id" embedding_dim: 8 } }
feature_configs { id_feature { feature_name: "item_id" expression: "item:item_id" embedding_dim: 8 } }
feature_configs { lookup_feature { feature_name: "cate_cnt" map: "user:kv_cate" key: "item:cate" combiner: "mean"
                                   default_value: "0" boundaries: [0, 1, 2.5] embedding_dim: 8 } }
feature_configs { lookup_feature { feature_name: "cate_group" map: "user:kv_cate" key: "item:cate"
                                   need_discrete: true hash_bucket_size: 100 embedding_dim: 8 } }
feature_configs { match_feature { feature_name: "brand_cnt" nested_map: "user:kkv" pkey: "ALL" skey: "item:brand" } }
feature_configs { combine_feature { feature_name: "tag_sum" expression: "user:tag" combiner: "max"
                                    value_map: [{key: "a" value: 1.5}, {key: "b" value: 2.0}] } }
feature_configs { overlap_feature { feature_name: "common" query: "user:query" title: "item:title" separator: " "
                                    method: "title_common_ratio" } }
feature_configs { kv_dot_product { feature_name: "sim" query: "user:kv_cate" document: "item:kv" separator: "|"
                                   default_value: "0.1" } }
feature_configs { bool_mask_feature { feature_name: "valid" expression: ["user:clicks", "user:is_valid"]
                                      separator: "," embedding_dim: 8 num_buckets: 10 } }
feature_configs { tokenize_feature { feature_name: "words" expression: "item:name" vocab_file: "tokenizer.json"
    tokenizer_type: "bpe" embedding_dim: 8 text_normalizer { norm_options: [TEXT_UPPER2LOWER, TEXT_CHT2CHS] } } }
feature_configs { regex_replace_feature { feature_name: "clean" expression: "item:name" regex_pattern: ["\\|", "#"]
                                          replacement: " " icase: true embedding_dim: 8 hash_bucket_size: 100 } }
feature_configs { raw_feature { feature_name: "pic" expression: "item:pic" value_dim: 4 separator: "|" } }
feature_configs { expr_feature { feature_name: "pic_sim" expression: "dot(u_pic, pic)"
                                 variables: ["user:u_pic", "item:pic"] } }
feature_configs { overlap_feature { feature_name: "odd" query: "user:query" title: "item:title" method: "common" } }
feature_configs { lookup_feature { feature_name: "keyed" map: "user:kv_cate" key: "item:cate" need_key: true } }
feature_configs { custom_feature { feature_name: "distance" operator_name: "EditDistance"
                                   expression: ["user:query", "item:title"] } }
"""

ALL = {
    "torch_transforms": TORCH_TRANSFORMS,
    "old_deepfm": OLD_DEEPFM,
    "old_dbmtl": OLD_DBMTL,
    "torch_dlrm": TORCH_DLRM,
    "torch_mmoe": TORCH_MMOE,
    "torch_dcn": TORCH_DCN,
    "fg_json": FG_JSON,
}
