// Damaged config.json files: bytes that changed, members that are missing, new or of another kind.
// Each must be read or refused with std::invalid_argument, and what was read must hold what the
// rest of the library relies on; no size in it may make the encoder take memory for more than the
// weights that are there.
//
//     encoder_config_fuzz [runs] [first seed]
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/damage.h"
#include "support/tiny_encoder.h"

namespace headkit {
namespace {

// Members that a tiny model's configuration does not have, one of them with another's value.
std::string with_more(const std::string& text, testing::Damage& damage) {
  if (damage.chance(0.5)) return text;
  static const std::vector<std::string> kMore = {
      "pad_token_id", "type_vocab_size", "hidden_act", "head_dim",   "pooler_output_size",
      "qkv_bias",     "is_decoder",      "num_labels", "patch_size", "position_embedding_type",
      "pruned_heads",
  };
  static const std::vector<nlohmann::json> kValues = {
      nullptr, true, "gelu", "relative_key", 4096, -1, 0.5, {{"0", {1}}}, {2, 3},
  };
  nlohmann::json config = nlohmann::json::parse(text);
  config[kMore[damage.below(static_cast<int64_t>(kMore.size()))]] =
      kValues[damage.below(static_cast<int64_t>(kValues.size()))];
  return config.dump();
}

void require(bool condition, const char* what, const std::string& text) {
  if (condition) return;
  std::cerr << what << " from\n" << text << "\n";
  std::exit(1);
}

// Whether the text was read.
bool run(uint32_t seed) {
  testing::Damage damage(seed);
  const bool is_image_model = damage.chance(0.5);
  const std::string whole = is_image_model ? testing::kTinyVit : testing::kTinyBert;
  const std::string text = damage.chance(0.4) ? damage.with_other_bytes(whole)
                                              : damage.with_other_values(with_more(whole, damage));
  try {
    const EncoderConfig config = EncoderConfig::from_json(text);
    const HeadLayout& layout = config.layout;
    layout.check("fuzz");
    require(layout.heads * layout.head_dim == layout.model_dim, "heads that do not fill", text);
    require(config.is_image_model() == (config.vocabulary == 0), "neither text nor image", text);
    require(config.padding_token < std::max<int64_t>(config.vocabulary, 1), "padding", text);
    static const auto kWords = testing::tiny_weights(false), kImages = testing::tiny_weights(true);
    Encoder(config, is_image_model ? kImages : kWords);
  } catch (const std::invalid_argument&) {
    return false;
  }
  return true;
}

}  // namespace
}  // namespace headkit

int main(int argc, char** argv) {
  const int64_t runs = argc > 1 ? std::atoll(argv[1]) : 1000;
  const auto first = static_cast<uint32_t>(argc > 2 ? std::atoll(argv[2]) : 1);
  int64_t read = 0;
  for (int64_t i = 0; i < runs; ++i) {
    const auto seed = first + static_cast<uint32_t>(i);
    try {
      read += headkit::run(seed) ? 1 : 0;
    } catch (const std::exception& error) {
      std::cerr << "seed " << seed << ": " << error.what() << "\n";
      return 1;
    }
  }
  std::cout << runs << " texts, " << read << " of them read\n";
  // All refused, or all read, would test nothing.
  return runs < 100 || (read > 0 && read < runs) ? 0 : 1;
}
