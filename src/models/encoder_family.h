#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace headkit {

/// Paths below a layer, or below the base model.
struct AttentionNames {
  const char *q, *k, *v, *o;
};
struct FeedForwardNames {
  const char *in, *out;
};

/// Spellings and what they become, in the order in which they apply.
using Renamings = std::vector<std::pair<const char*, const char*>>;

/// How transformers names the parts of a family of encoders: in config.json and in the state
/// dictionary.
struct EncoderFamily {
  const char* model_type;
  const char *base, *classifier;  ///< classes
  const char* prefix;             ///< of the base model's parameters in the classifier's

  struct {
    const char *layers, *heads, *width, *neurons, *activation;
  } sizes;  ///< members of config.json

  bool norm_first;     ///< norms before the blocks, and one after the last layer
  const char* layers;  ///< path of the layers
  AttentionNames attention;
  FeedForwardNames feed_forward;
  const char *attention_norm, *feed_forward_norm;

  const char* pooler;  ///< nullptr = none; in a classifier only where that has no `dense`
  /// A classifier is a dense layer on the first token, an activation and a linear map. `dense` =
  /// nullptr: the dense layer is the pooler, or there is none where there is no activation.
  const char *dense, *dense_activation, *output;

  bool counts_positions = false;  ///< over tokens that are no padding, from pad_token_id + 1
  bool has_token_types = true;
  bool lists_classifier_first = false;  ///< in the state dictionary

  /// From what checkpoints say, or said once, to what the modules of today are called.
  Renamings renamed = {};

  /// What a tensor of a checkpoint is called in a model, the base alone or with a classifier.
  std::string parameter_name(std::string name, bool is_base) const;
};

/// The family of a model type; nullptr for one that is not known.
const EncoderFamily* find_family(std::string_view model_type);
/// The model types that are known: "bert, roberta ...".
std::string family_names();

}  // namespace headkit
