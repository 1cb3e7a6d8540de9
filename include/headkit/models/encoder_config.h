#pragma once

#include <cstdint>
#include <string>

#include "headkit/core/head_layout.h"

namespace headkit {

/// What the config.json of a Hugging Face encoder says, as far as its function goes.
struct EncoderConfig {
  /// "bert", "roberta", "xlm-roberta", "distilbert" (norm after each block, of tokens) or "vit"
  /// (norm before each block, of image patches).
  std::string model_type;
  /// The class, for example "BertModel", whose output is the last hidden state [B, T, D], or
  /// "BertForSequenceClassification": logits [B, labels].
  std::string architecture;
  HeadLayout layout;
  std::string activation;  ///< of the feed-forward blocks, as `gated_feed_forward` names it
  double norm_eps = 1e-12;
  int64_t labels = 0;  ///< classes; 0 = no classifier
  bool qkv_bias = true;

  int64_t vocabulary = 0;      ///< tokens; 0 for images
  int64_t positions = 0;       ///< rows of the position table
  int64_t token_types = 0;     ///< 0 = the model has none
  int64_t padding_token = -1;  ///< RoBERTa counts positions from it; -1 = none

  int64_t image_height = 0, image_width = 0;  ///< pixels; 0 for tokens
  int64_t patch_height = 0, patch_width = 0;  ///< pixels
  int64_t channels = 0;
  int64_t pooled = 0;  ///< width of what a pooler gives

  std::string json;  ///< the text it was read from

  bool is_image_model() const { return channels > 0; }

  /// Reads config.json. `architecture` names the class where the text names none, or to load one
  /// that it does not name, such as "BertModel" from a masked language model; "" = its first one.
  /// Throws std::invalid_argument on a text that is no JSON, lacks a size or contradicts itself,
  /// and on what is not computed here: other model types and classes, activations that
  /// `gated_feed_forward` lacks, relative positions, decoders, quantised weights.
  static EncoderConfig from_json(const std::string& text, const std::string& architecture = "");
};

}  // namespace headkit
