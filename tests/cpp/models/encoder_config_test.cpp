#include "headkit/models/encoder_config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "support/tiny_encoder.h"

namespace headkit {
namespace {

using nlohmann::json;
using testing::kTinyBert;
using testing::kTinyVit;

EncoderConfig read(const char* text, const json& change, const std::string& architecture = "") {
  json config = json::parse(text);
  config.update(change);
  return EncoderConfig::from_json(config.dump(), architecture);
}

std::string refusal(const char* text, const json& change) {
  try {
    read(text, change);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "nothing refused";
}

TEST(EncoderConfigTest, ReadsWhatTransformersWrites) {
  const EncoderConfig bert = EncoderConfig::from_json(kTinyBert);
  EXPECT_EQ(bert.layout, (HeadLayout{2, 3, 4, 12, 40}));
  EXPECT_EQ(bert.architecture, "BertForSequenceClassification");
  EXPECT_EQ(bert.labels, 5);
  EXPECT_EQ(bert.norm_eps, 1e-6);
  EXPECT_FALSE(bert.is_image_model());
  const EncoderConfig vit = EncoderConfig::from_json(kTinyVit);
  EXPECT_TRUE(vit.is_image_model());
  EXPECT_EQ(vit.labels, 0);
  EXPECT_EQ(vit.image_height, 4);
  EXPECT_EQ(vit.image_width, 6);
  EXPECT_EQ(vit.patch_width, 2);
}

TEST(EncoderConfigTest, WhatIsLeftOutIsTheDefaultOfTransformers) {
  const EncoderConfig bert = EncoderConfig::from_json(kTinyBert);
  EXPECT_EQ(bert.activation, "gelu");
  EXPECT_EQ(bert.token_types, 2);
  EXPECT_EQ(bert.padding_token, 0);
  EXPECT_EQ(read(kTinyBert, {{"id2label", nullptr}}).labels, 2);
  EXPECT_EQ(read(kTinyBert, {{"layer_norm_eps", nullptr}}).norm_eps, 1e-12);
  EXPECT_EQ(read(kTinyBert, {{"pad_token_id", nullptr}}).padding_token, -1);
  const json roberta = {{"model_type", "roberta"}, {"architectures", {"RobertaModel"}}};
  EXPECT_EQ(read(kTinyBert, roberta).padding_token, 1);
  EXPECT_EQ(read(kTinyVit, {{"image_size", nullptr}}).image_height, 224);
}

TEST(EncoderConfigTest, ActivationsByTheirNamesThere) {
  for (const auto& [theirs, ours] :
       std::vector<std::pair<const char*, const char*>>{{"gelu", "gelu"},
                                                        {"gelu_new", "gelu_tanh"},
                                                        {"gelu_pytorch_tanh", "gelu_tanh"},
                                                        {"relu", "relu"},
                                                        {"swish", "silu"}}) {
    EXPECT_EQ(read(kTinyBert, {{"hidden_act", theirs}}).activation, ours) << theirs;
  }
}

TEST(EncoderConfigTest, AnotherArchitectureMayBeAskedFor) {
  const EncoderConfig base = EncoderConfig::from_json(kTinyBert, "BertModel");
  EXPECT_EQ(base.architecture, "BertModel");
  EXPECT_EQ(base.labels, 0);
  EXPECT_THROW(EncoderConfig::from_json(kTinyBert, "ViTModel"), std::invalid_argument);
}

TEST(EncoderConfigTest, RefusesWithWhatItFound) {
  EXPECT_EQ(refusal(kTinyBert, {{"hidden_size", 13}}),
            "[encoder_config] expected hidden_size that 3 heads share evenly; found 13");
  EXPECT_EQ(refusal(kTinyBert, {{"model_type", "t5"}}),
            "[encoder_config] expected model_type bert, roberta, xlm-roberta, distilbert, vit; "
            "found 't5'");
  EXPECT_EQ(refusal(kTinyVit, {{"patch_size", 8}}),
            "[encoder_config] expected patch_size within image_size; found 8 x 8 in 4 x 6");
  EXPECT_EQ(refusal(kTinyBert, {{"pad_token_id", 20}}),
            "[encoder_config] expected pad_token_id below vocab_size 20; found 20");
  for (const json& change : std::vector<json>{{{"num_hidden_layers", 5000}},
                                              {{"num_hidden_layers", "2"}},
                                              {{"intermediate_size", int64_t{1} << 40}},
                                              {{"hidden_act", 3}},
                                              {{"layer_norm_eps", -1}},
                                              {{"is_decoder", true}},
                                              {{"head_dim", 5}},
                                              {{"id2label", json::object()}},
                                              {{"architectures", "BertModel"}},
                                              {{"position_embedding_type", "relative_key"}}}) {
    EXPECT_EQ(refusal(kTinyBert, change).find("[encoder_config] expected "), 0U) << change;
  }
  for (const char* text : {"", "[]", "3", "null", "{\"model_type\": 1}"}) {
    EXPECT_THROW(EncoderConfig::from_json(text), std::invalid_argument) << text;
  }
}

}  // namespace
}  // namespace headkit
