#include "headkit/persistence/encoder_folder.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "headkit/gates/mask_policy.h"
#include "headkit/gates/run_policy.h"
#include "headkit/pruners/removal.h"
#include "support/scratch_folder.h"
#include "support/tiny_encoder.h"

namespace headkit {
namespace {

using namespace headkit::testing;

HeadMask some_heads() { return HeadMask(at::tensor({1, 0, 1, 0, 0, 1}).reshape({2, 3})); }

void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// A folder as transformers writes it.
std::string plain_folder(const ScratchFolder& scratch, bool is_image_model) {
  const std::string folder = scratch / "plain";
  std::filesystem::create_directory(folder);
  write_text(folder + "/config.json", is_image_model ? kTinyVit : kTinyBert);
  write_safetensors(folder + "/model.safetensors", tiny_weights(is_image_model));
  return folder;
}

std::string refusal(const std::string& folder, const EncoderOptions& options = {}) {
  try {
    load_encoder(folder, options);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "nothing refused";
}

// Weights in a file lie at other addresses than in memory, which a product in float64 may show.
bool close(const at::Tensor& found, const at::Tensor& expected) {
  return at::allclose(found, expected, 1e-12, 1e-12);
}

TEST(EncoderFolderTest, APlainFolderIsTheModelOfItsWeights) {
  for (const bool is_image_model : {false, true}) {
    const ScratchFolder scratch;
    const SavedEncoder found = load_encoder(plain_folder(scratch, is_image_model));
    Encoder expected = tiny_encoder(is_image_model);
    const Batch batch = tiny_batch(is_image_model);
    EXPECT_TRUE(close((*found.model)(batch), expected(batch)));
    EXPECT_EQ(found.model->fingerprint(), expected.fingerprint());
    EXPECT_TRUE(found.gates.empty());
    EXPECT_EQ(found.policy, nullptr);
  }
}

TEST(EncoderFolderTest, WhatIsLeftOfAModelComesBackWithItsPolicy) {
  for (const bool is_image_model : {false, true}) {
    const ScratchFolder scratch;
    Encoder model = tiny_encoder(is_image_model);
    const std::string whole = model.fingerprint();
    GateSet units = GateSet::from_mask(some_heads());
    units.neurons = at::rand({2, 40}).gt(0.5).to(at::kFloat);
    units.feed_forward_sublayers = at::tensor({0.0, 1.0});
    units.dropped_output = at::randn({2, 3, 12}, at::kDouble);
    remove_units(model, units);

    ModelFolder content = describe_encoder(model);
    content.policy = MaskPolicy(HeadMask(at::tensor({1, 0, 0, 0, 0, 1}).reshape({2, 3}))).to_json();
    content.gates.heads = at::full({2, 3}, 0.5);
    write_model_folder(scratch / "saved", content);
    const SavedEncoder found = load_encoder(scratch / "saved");

    const Batch batch = tiny_batch(is_image_model);
    EXPECT_TRUE(close((*found.model)(batch), model(batch)));
    EXPECT_EQ(found.model->heads(), some_heads());
    EXPECT_TRUE(at::equal(found.model->neurons(), model.neurons()));
    EXPECT_EQ(found.model->sublayers().feed_forward, model.sublayers().feed_forward);
    EXPECT_EQ(found.model->base_fingerprint(), whole);
    EXPECT_TRUE(at::equal(found.gates.heads, content.gates.heads));
    EXPECT_EQ(run_policy(*found.model, batch, *found.policy).heads_run.sum().item<int64_t>(), 6);

    // Restored into the original, as a folder of any other model is.
    Encoder original = tiny_encoder(is_image_model);
    restore_model(original, content);
    EXPECT_TRUE(close(original(batch), model(batch)));
    EXPECT_EQ(original.base_fingerprint(), whole);
  }
}

TEST(EncoderFolderTest, WeightsAreConverted) {
  const ScratchFolder scratch;
  const std::string folder = plain_folder(scratch, false);
  const auto single = load_encoder(folder, {.dtype = at::kFloat}).model;
  for (const auto& [name, tensor] : single->parameters()) {
    EXPECT_EQ(tensor.scalar_type(), at::kFloat) << name;
  }
  Encoder exact = tiny_encoder();
  const Batch batch = tiny_batch();
  EXPECT_TRUE(at::allclose((*single)(batch).to(at::kDouble), exact(batch), 1e-4, 1e-5));
  EXPECT_THROW(load_encoder(folder, {.dtype = at::kLong}), std::invalid_argument);
}

TEST(EncoderFolderTest, ShardsAreJoined) {
  const ScratchFolder scratch;
  const std::string folder = plain_folder(scratch, false);
  const NamedTensors all = tiny_weights(false);
  const auto half = static_cast<std::ptrdiff_t>(all.size() / 2);
  write_safetensors(folder + "/a.safetensors", {all.begin(), all.begin() + half});
  write_safetensors(folder + "/b.safetensors", {all.begin() + half, all.end()});
  std::filesystem::remove(folder + "/model.safetensors");
  nlohmann::json index;
  for (size_t i = 0; i < all.size(); ++i) {
    index["weight_map"][all[i].first] = i < all.size() / 2 ? "a.safetensors" : "b.safetensors";
  }
  const std::string path = folder + "/model.safetensors.index.json";
  write_text(path, index.dump());
  EXPECT_EQ(load_encoder(folder).model->fingerprint(), tiny_encoder().fingerprint());

  index["weight_map"][all[0].first] = "b.safetensors";
  write_text(path, index.dump());
  EXPECT_NE(refusal(folder).find("where the index says it is; found none"), std::string::npos);
  index["weight_map"][all[0].first] = "../plain/a.safetensors";
  write_text(path, index.dump());
  EXPECT_NE(refusal(folder).find("the name of a file in the folder"), std::string::npos);
}

TEST(EncoderFolderTest, FaultsOfFilesNameTheFile) {
  const ScratchFolder scratch;
  EXPECT_NE(refusal(scratch / "none").find("a folder with a config.json"), std::string::npos);
  const std::string folder = plain_folder(scratch, false);
  EXPECT_NE(refusal(folder, {.architecture = "ViTModel"}).find("config.json')"), std::string::npos);
  write_text(folder + "/config.json", "{}");
  EXPECT_NE(refusal(folder).find("\"model_type\"; found {} (in '" + folder + "/config.json')"),
            std::string::npos);
  std::filesystem::remove(folder + "/config.json");
  std::filesystem::create_directory(folder + "/config.json");
  EXPECT_NE(refusal(folder).find("not a regular file"), std::string::npos);
}

}  // namespace
}  // namespace headkit
