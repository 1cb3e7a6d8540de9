#include "models/encoder_family.h"

#include <algorithm>

namespace headkit {
namespace {

// As the checkpoints of TensorFlow had them.
Renamings old_norms() {
  return {{"LayerNorm.gamma", "LayerNorm.weight"}, {"LayerNorm.beta", "LayerNorm.bias"}};
}

EncoderFamily bert() {
  return {.model_type = "bert",
          .base = "BertModel",
          .classifier = "BertForSequenceClassification",
          .prefix = "bert.",
          .sizes = {"num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size",
                    "hidden_act"},
          .norm_first = false,
          .layers = "encoder.layer.",
          .attention = {"attention.self.query", "attention.self.key", "attention.self.value",
                        "attention.output.dense"},
          .feed_forward = {"intermediate.dense", "output.dense"},
          .attention_norm = "attention.output.LayerNorm",
          .feed_forward_norm = "output.LayerNorm",
          .pooler = "pooler.dense",
          .dense = nullptr,
          .dense_activation = "tanh",
          .output = "classifier",
          .renamed = old_norms()};
}

EncoderFamily roberta() {
  EncoderFamily family = bert();
  family.model_type = "roberta";
  family.base = "RobertaModel";
  family.classifier = "RobertaForSequenceClassification";
  family.prefix = "roberta.";
  family.dense = "classifier.dense";
  family.output = "classifier.out_proj";
  family.counts_positions = true;
  return family;
}

EncoderFamily xlm_roberta() {
  EncoderFamily family = roberta();
  family.model_type = "xlm-roberta";
  family.base = "XLMRobertaModel";
  family.classifier = "XLMRobertaForSequenceClassification";
  family.lists_classifier_first = true;
  return family;
}

EncoderFamily distilbert() {
  return {
      .model_type = "distilbert",
      .base = "DistilBertModel",
      .classifier = "DistilBertForSequenceClassification",
      .prefix = "distilbert.",
      .sizes = {"n_layers", "n_heads", "dim", "hidden_dim", "activation"},
      .norm_first = false,
      .layers = "transformer.layer.",
      .attention = {"attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"},
      .feed_forward = {"ffn.lin1", "ffn.lin2"},
      .attention_norm = "sa_layer_norm",
      .feed_forward_norm = "output_layer_norm",
      .pooler = nullptr,
      .dense = "pre_classifier",
      .dense_activation = "relu",
      .output = "classifier",
      .has_token_types = false,
      .renamed = old_norms()};
}

EncoderFamily vit() {
  return {
      .model_type = "vit",
      .base = "ViTModel",
      .classifier = "ViTForImageClassification",
      .prefix = "vit.",
      .sizes = {"num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size",
                "hidden_act"},
      .norm_first = true,
      .layers = "layers.",
      .attention = {"attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"},
      .feed_forward = {"mlp.fc1", "mlp.fc2"},
      .attention_norm = "layernorm_before",
      .feed_forward_norm = "layernorm_after",
      .pooler = "pooler.dense",
      .dense = nullptr,
      .dense_activation = nullptr,
      .output = "classifier",
      .has_token_types = false,
      // Files keep the names that the modules had before transformers 5.
      .renamed = {{"encoder.layer.", "layers."},
                  {".attention.attention.query.", ".attention.q_proj."},
                  {".attention.attention.key.", ".attention.k_proj."},
                  {".attention.attention.value.", ".attention.v_proj."},
                  {".attention.output.dense.", ".attention.o_proj."},
                  {".intermediate.dense.", ".mlp.fc1."},
                  {".output.dense.", ".mlp.fc2."}}};
}

const std::vector<EncoderFamily>& families() {
  static const std::vector<EncoderFamily> all = {bert(), roberta(), xlm_roberta(), distilbert(),
                                                 vit()};
  return all;
}

}  // namespace

std::string EncoderFamily::parameter_name(std::string name, bool is_base) const {
  for (const auto& [old, now] : renamed) {
    const size_t place = name.find(old);
    if (place != std::string::npos) name.replace(place, std::string_view(old).size(), now);
  }
  if (is_base && name.starts_with(prefix)) name.erase(0, std::string_view(prefix).size());
  return name;
}

const EncoderFamily* find_family(std::string_view model_type) {
  const auto found = std::find_if(families().begin(), families().end(), [&](const auto& family) {
    return model_type == family.model_type;
  });
  return found == families().end() ? nullptr : &*found;
}

std::string family_names() {
  std::string names;
  for (const EncoderFamily& family : families()) {
    names += (names.empty() ? "" : ", ") + std::string(family.model_type);
  }
  return names;
}

}  // namespace headkit
