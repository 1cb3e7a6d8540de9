// Damaged config.json files: bytes that changed, members that are missing, doubled or of another
// kind. Each must be read or refused with std::invalid_argument, and what was read must hold what
// the rest of the library relies on; no size in it may make the encoder take memory for more than
// the weights that are there.
//
//     encoder_config_fuzz [runs] [first seed]
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "support/tiny_encoder.h"

namespace headkit {
namespace {

using nlohmann::json;

class Damage {
 public:
  explicit Damage(uint32_t seed) : generator_(seed) {}

  std::string of(const std::string& text) {
    return chance(0.4) ? with_other_bytes(text) : with_other_members(text);
  }
  bool chance(double probability) { return std::bernoulli_distribution(probability)(generator_); }

 private:
  int64_t below(int64_t count) {
    return std::uniform_int_distribution<int64_t>(0, count - 1)(generator_);
  }

  std::string with_other_bytes(std::string text) {
    for (int64_t edits = 1 + below(4); edits > 0 && !text.empty(); --edits) {
      const auto place = static_cast<size_t>(below(static_cast<int64_t>(text.size())));
      switch (below(3)) {
        case 0:
          text[place] = static_cast<char>(below(256));
          break;
        case 1:
          text.erase(place, static_cast<size_t>(1 + below(20)));
          break;
        default:
          text.insert(place,
                      text.substr(static_cast<size_t>(below(static_cast<int64_t>(place) + 1)),
                                  static_cast<size_t>(below(30))));
      }
    }
    return text;
  }

  std::string with_other_members(const std::string& text) {
    json config = json::parse(text);
    for (int64_t edits = 1 + below(3); edits > 0; --edits) {
      const char* kMore[] = {"pad_token_id", "type_vocab_size",    "hidden_act",
                             "head_dim",     "pooler_output_size", "qkv_bias",
                             "is_decoder",   "num_labels",         "position_embedding_type",
                             "pruned_heads", "patch_size"};
      std::string name = kMore[below(std::size(kMore))];
      if (chance(0.7)) name = std::next(config.begin(), below(config.size())).key();
      if (chance(0.2)) {
        config.erase(name);
      } else {
        config[name] = value();
      }
      if (config.empty()) break;
    }
    return config.dump();
  }

  json value() {
    const json kValues[] = {nullptr,
                            true,
                            "gelu",
                            "bert",
                            "vit",
                            "RobertaModel",
                            json::array(),
                            json::array({"BertModel"}),
                            json::array({2, 3}),
                            json::object(),
                            1e300,
                            0.5,
                            INT64_MAX,
                            INT64_MIN,
                            UINT64_MAX,
                            int64_t{1} << 31,
                            int64_t{1} << 22,
                            4096};
    return chance(0.3) ? json(below(30) - 4) : kValues[below(std::size(kValues))];
  }

  std::mt19937 generator_;
};

void require(bool condition, const char* what, const std::string& text) {
  if (condition) return;
  std::cerr << what << " from\n" << text << "\n";
  std::exit(1);
}

// Whether the text was read.
bool run(uint32_t seed) {
  Damage damage(seed);
  const bool is_image_model = damage.chance(0.5);
  const std::string text = damage.of(is_image_model ? testing::kTinyVit : testing::kTinyBert);
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
