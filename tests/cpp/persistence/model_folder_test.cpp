#include "headkit/persistence/model_folder.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "headkit/pruners/removal.h"
#include "support/scratch_folder.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

using testing::ScratchFolder;

const HeadLayout kLayout{.layers = 2, .heads = 3, .head_dim = 2, .model_dim = 5};

HeadMask some_heads() {
  return HeadMask(at::tensor({1, 0, 1, 0, 0, 0}, at::kLong).reshape({2, 3}));
}

ModelFolder pruned_model(uint64_t seed) {
  const auto model = testing::random_toy_model(kLayout, 4, seed);
  const std::string base = model->fingerprint();
  remove_heads(*model, some_heads());
  ModelFolder content = describe_model(*model, base);
  content.config = R"({"hidden_size": 5})";
  content.policy = R"({"kind": "static", "threshold": 0.1})";
  content.details = R"({"model_class": "Toy"})";
  content.gates.heads = at::ones({2, 3}, at::kDouble);
  content.gates.dropped_output = at::randn({2, 3, 5}, at::kDouble);
  return content;
}

std::string read_all(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_all(const std::string& path, const std::string& bytes) {
  std::filesystem::remove(path);  // some file systems flush a file that is cut and written again
  std::ofstream(path, std::ios::binary) << bytes;
}

TEST(ModelFolderTest, ComesBackBitForBit) {
  const ScratchFolder scratch;
  const ModelFolder saved = pruned_model(1);
  write_model_folder(scratch / "model", saved);
  const ModelFolder found = read_model_folder(scratch / "model");
  EXPECT_EQ(found.layout, saved.layout);
  EXPECT_EQ(found.heads, saved.heads);
  EXPECT_EQ(found.base_fingerprint, saved.base_fingerprint);
  EXPECT_EQ(nlohmann::json::parse(found.policy), nlohmann::json::parse(saved.policy));
  EXPECT_EQ(nlohmann::json::parse(found.config), nlohmann::json::parse(saved.config));
  EXPECT_EQ(nlohmann::json::parse(read_all(scratch / "model/config.json")),
            nlohmann::json::parse(saved.config));
  EXPECT_EQ(nlohmann::json::parse(found.details), nlohmann::json::parse(saved.details));
  EXPECT_TRUE(at::equal(found.gates.heads, saved.gates.heads));
  EXPECT_TRUE(at::equal(found.gates.dropped_output, saved.gates.dropped_output));
  ASSERT_EQ(found.weights.size(), saved.weights.size());
  const std::map<std::string, at::Tensor> by_name(found.weights.begin(), found.weights.end());
  for (const auto& [name, tensor] : saved.weights) EXPECT_TRUE(at::equal(by_name.at(name), tensor));
  EXPECT_TRUE(std::filesystem::exists(scratch /
                                      ("model/weights-" + found.weights_sha256 + ".safetensors")));
}

TEST(ModelFolderTest, RestoresTheModelExactly) {
  const ScratchFolder scratch;
  write_model_folder(scratch / "model", pruned_model(1));
  const auto expected = testing::random_toy_model(kLayout, 4, 1);
  remove_heads(*expected, some_heads());
  const Batch batch = testing::random_toy_batch(kLayout, 7, 5, 4, 3);

  const auto restored = testing::random_toy_model(kLayout, 4, 1);
  restore_model(*restored, read_model_folder(scratch / "model"));
  EXPECT_EQ(restored->heads(), some_heads());
  EXPECT_EQ(restored->fingerprint(), expected->fingerprint());
  EXPECT_TRUE(at::equal((*restored)(batch), (*expected)(batch)));

  const auto fresh = testing::random_toy_model(kLayout, 4, 99);
  restore_model(*fresh, read_model_folder(scratch / "model"), /*check_base=*/false);
  EXPECT_EQ(fresh->fingerprint(), expected->fingerprint());
}

TEST(ModelFolderTest, RefusesForeignModelsAndLeavesThemUntouched) {
  const ScratchFolder scratch;
  write_model_folder(scratch / "model", pruned_model(1));
  const ModelFolder content = read_model_folder(scratch / "model");

  const auto foreign = testing::random_toy_model(kLayout, 4, 2);
  const auto changed = testing::random_toy_model(kLayout, 4, 1);
  changed->attention(1).v[0][0] += 1e-9;
  const auto pruned = testing::random_toy_model(kLayout, 4, 1);
  remove_heads(*pruned, HeadMask(at::tensor({1, 1, 1, 1, 1, 0}, at::kLong).reshape({2, 3})));
  HeadLayout larger = kLayout;
  larger.heads = 4;
  const auto other_layout = testing::random_toy_model(larger, 4, 1);
  for (const auto& model : {foreign, changed, pruned, other_layout}) {
    const std::string before = model->fingerprint();
    const HeadMask heads = model->heads();
    EXPECT_THROW(restore_model(*model, content), std::invalid_argument);
    EXPECT_EQ(model->fingerprint(), before);
    EXPECT_EQ(model->heads(), heads);
  }

  // Weights that do not fit are found only after removal, which is then taken back.
  const auto other_classes = testing::random_toy_model(kLayout, 6, 1);
  const std::string before = other_classes->fingerprint();
  EXPECT_THROW(restore_model(*other_classes, content, /*check_base=*/false), std::invalid_argument);
  EXPECT_EQ(other_classes->fingerprint(), before);
  EXPECT_TRUE(other_classes->heads().removed().empty());
}

const HeadLayout kUnits{.layers = 2, .heads = 3, .head_dim = 2, .model_dim = 5, .feed_forward = 9};

GateSet some_units() {
  GateSet gates;
  gates.heads = at::tensor({1.0, 0.0, 0.5, 1.0, 1.0, 1.0}, at::kDouble).reshape({2, 3});
  gates.neurons = at::ones({2, 9}, at::kDouble);
  gates.neurons[0].slice(0, 0, 9, 2).zero_();
  gates.attention_sublayers = at::tensor({1.0, 0.0}, at::kDouble);
  gates.feed_forward_sublayers = at::tensor({0.7, 1.0}, at::kDouble);
  return gates;
}

ModelFolder model_without_units() {
  const auto model = testing::random_toy_model(kUnits, 4, 1);
  const std::string base = model->fingerprint();
  remove_units(*model, some_units());
  return describe_model(*model, base);
}

TEST(ModelFolderTest, NeuronsAndBlocksComeBack) {
  const ScratchFolder scratch;
  ModelFolder saved = model_without_units();
  saved.gates.neurons = at::rand({2, 9});
  saved.gates.feed_forward_sublayers = at::rand({2});
  write_model_folder(scratch / "model", saved);
  const ModelFolder found = read_model_folder(scratch / "model");
  EXPECT_TRUE(at::equal(found.neurons, saved.neurons));
  EXPECT_EQ(found.neurons[0].sum().item<int64_t>(), 4);
  EXPECT_EQ(found.sublayers.attention, (std::vector<bool>{true, false}));
  EXPECT_TRUE(at::equal(found.gates.neurons, saved.gates.neurons));
  EXPECT_TRUE(at::equal(found.gates.feed_forward_sublayers, saved.gates.feed_forward_sublayers));

  const auto expected = testing::random_toy_model(kUnits, 4, 1);
  remove_units(*expected, some_units());
  const Batch batch = testing::random_toy_batch(kUnits, 7, 5, 4, 3);
  const auto restored = testing::random_toy_model(kUnits, 4, 1);
  restore_model(*restored, found);
  EXPECT_EQ(restored->fingerprint(), expected->fingerprint());
  EXPECT_TRUE(at::equal(restored->neurons(), expected->neurons()));
  EXPECT_EQ(restored->sublayers().attention, (std::vector<bool>{true, false}));
  EXPECT_TRUE(at::equal((*restored)(batch), (*expected)(batch)));
  EXPECT_THROW(restore_model(*restored, found), std::invalid_argument);  // pruned already

  // Weights that do not fit are found after removal, which is then taken back.
  const auto other = testing::random_toy_model(kUnits, 6, 1);
  const std::string before = other->fingerprint();
  EXPECT_THROW(restore_model(*other, found, /*check_base=*/false), std::invalid_argument);
  EXPECT_EQ(other->fingerprint(), before);
  EXPECT_TRUE(other->is_whole());
}

TEST(ModelFolderTest, AFolderOfHeadsAloneIsReadByOlderVersions) {
  const ScratchFolder scratch;
  write_model_folder(scratch / "heads", pruned_model(1));
  write_model_folder(scratch / "units", model_without_units());
  const auto schema = [&](const char* name) {
    return nlohmann::json::parse(read_all(scratch / (std::string(name) + "/headkit.json")))
        .at("schema");
  };
  EXPECT_EQ(schema("heads"), 1);
  EXPECT_EQ(schema("units"), 2);
}

TEST(ModelFolderTest, RefusesHostileNeurons) {
  const ScratchFolder scratch;
  const std::string folder = scratch / "model";
  write_model_folder(folder, model_without_units());
  const std::string path = folder + "/headkit.json";
  const auto whole = nlohmann::json::parse(read_all(path));
  using nlohmann::json;
  const std::vector<std::pair<std::string, json>> hostile = {
      {"/neurons/count", 1000000000000},
      {"/neurons/count", 8},
      {"/neurons/count", -9},
      {"/neurons/kept", json::array()},
      {"/neurons/kept/0", {0, 0}},
      {"/neurons/kept/0", {9}},
      {"/neurons/kept/0", {-1}},
      {"/neurons/kept/0", {0.5}},
      {"/neurons/kept/1", "all"},
      {"/neurons", 3},
      {"/blocks/attention", {true}},
      {"/blocks/attention", {1, 0}},
      {"/blocks/feed_forward", {true, true, true}},
      {"/blocks", nullptr}};
  for (const auto& [place, value] : hostile) {
    auto manifest = whole;
    manifest[json::json_pointer(place)] = value;
    write_all(path, manifest.dump());
    EXPECT_THROW(read_model_folder(folder), std::runtime_error) << place << " " << value;
  }
  auto manifest = whole;
  manifest.erase("neurons");
  write_all(path, manifest.dump());
  EXPECT_THROW(read_model_folder(folder), std::runtime_error);
  // A list that is well formed but not what the weights are.
  manifest = whole;
  manifest["neurons"]["kept"][0] = {0, 1, 3};
  write_all(path, manifest.dump());
  const auto model = testing::random_toy_model(kUnits, 4, 1);
  EXPECT_THROW(restore_model(*model, read_model_folder(folder)), std::invalid_argument);
  EXPECT_TRUE(model->is_whole());
}

TEST(ModelFolderTest, APrunedModelCannotBeSavedWithoutItsBase) {
  const auto model = testing::random_toy_model(kLayout, 4, 1);
  EXPECT_EQ(describe_model(*model).base_fingerprint, model->fingerprint());
  remove_heads(*model, some_heads());
  EXPECT_THROW(describe_model(*model), std::invalid_argument);
}

TEST(ModelFolderTest, RefusesDamageAndNewerSchemas) {
  const ScratchFolder scratch;
  const std::string folder = scratch / "model";
  write_model_folder(folder, pruned_model(1));
  const std::string manifest_path = folder + "/headkit.json";
  const std::string manifest_text = read_all(manifest_path);
  const std::string weights_path =
      folder + "/weights-" + read_model_folder(folder).weights_sha256 + ".safetensors";
  const std::string weights = read_all(weights_path);

  std::string flipped = weights;
  flipped[flipped.size() - 3] ^= 4;
  for (const std::string& bad : {weights.substr(0, weights.size() - 1), flipped, std::string()}) {
    write_all(weights_path, bad);
    EXPECT_THROW(read_model_folder(folder), std::runtime_error);
  }
  std::filesystem::remove(weights_path);
  EXPECT_THROW(read_model_folder(folder), std::runtime_error);
  write_all(weights_path, weights);

  const auto manifest = nlohmann::json::parse(manifest_text);
  const auto refused = [&](const char* pointer, const nlohmann::json& value) {
    nlohmann::json changed = manifest;
    changed[nlohmann::json::json_pointer(pointer)] = value;
    write_all(manifest_path, changed.dump());
    EXPECT_THROW(read_model_folder(folder), std::runtime_error) << pointer << " " << value;
  };
  refused("/schema", 2);
  refused("/schema", 0);
  refused("/schema", "1");
  refused("/layout/heads", 4);
  refused("/layout/layers", INT64_MAX);
  refused("/heads/heads", INT64_MAX);
  refused("/heads/keep/0", {0, 3});
  refused("/heads/keep/0", {2, 0});
  refused("/weights/sha256", "../../etc/passwd");
  refused("/weights/sha256", std::string(64, '0'));
  refused("/base_fingerprint", "short");
  refused("/gates", nullptr);
  refused("/gates", 1);
  for (const auto& [key, value] : manifest.items()) {
    nlohmann::json changed = manifest;
    changed.erase(key);
    write_all(manifest_path, changed.dump());
    EXPECT_THROW(read_model_folder(folder), std::runtime_error) << "without " << key;
  }
  for (size_t length : {size_t{0}, size_t{1}, manifest_text.size() / 2}) {
    write_all(manifest_path, manifest_text.substr(0, length));
    EXPECT_THROW(read_model_folder(folder), std::runtime_error);
  }
  write_all(manifest_path, std::string(1 << 20, '['));
  EXPECT_THROW(read_model_folder(folder), std::runtime_error);

  write_all(manifest_path, manifest_text);
  EXPECT_NO_THROW(read_model_folder(folder));
  EXPECT_THROW(read_model_folder(scratch / "nothing"), std::runtime_error);

  nlohmann::json newer = manifest;
  newer["schema"] = 7;
  write_all(manifest_path, newer.dump());
  try {
    read_model_folder(folder);
    FAIL();
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("upgrade headkit"), std::string::npos) << error.what();
  }
}

TEST(ModelFolderTest, MutatedManifestsNeverCrash) {
  const ScratchFolder scratch;
  const std::string folder = scratch / "model";
  write_model_folder(folder, pruned_model(1));
  const std::string sound = read_all(folder + "/headkit.json");
  const std::string tokens[] = {"[", "{", "}", "]", "-", "9999999999999999999", "null", "\"", "e9"};
  std::mt19937 random(11);
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  for (int round = 0; round < 3000; ++round) {
    std::string text = sound;
    for (size_t edits = 1 + below(3); edits > 0 && !text.empty(); --edits) {
      const size_t place = below(text.size());
      switch (below(4)) {
        case 0:
          text[place] = static_cast<char>(text[place] ^ (1 << below(8)));
          break;
        case 1:
          text.insert(place, tokens[below(std::size(tokens))]);
          break;
        case 2:
          text.erase(place, 1 + below(30));
          break;
        default:
          text.resize(place);
      }
    }
    write_all(folder + "/headkit.json", text);
    try {
      const ModelFolder found = read_model_folder(folder);
      ASSERT_EQ(found.heads.layers(), found.layout.layers);
    } catch (const std::runtime_error&) {
    }
  }
}

TEST(ModelFolderTest, ContentThatContradictsItselfIsRefused) {
  const ScratchFolder scratch;
  const auto refused = [&](auto change) {
    ModelFolder content = pruned_model(1);
    change(content);
    EXPECT_THROW(write_model_folder(scratch / "model", content), std::invalid_argument);
    EXPECT_FALSE(std::filesystem::exists(scratch / "model"));
  };
  refused([](ModelFolder& c) { c.heads = HeadMask::all(2, 4); });
  refused([](ModelFolder& c) { c.base_fingerprint = ""; });
  refused([](ModelFolder& c) { c.policy = "{"; });
  refused([](ModelFolder& c) { c.config = "nonsense"; });
  refused([](ModelFolder& c) { c.gates.heads = at::ones({3, 2}); });
  refused([](ModelFolder& c) { c.gates.heads = at::ones({4, 2, 3}); });
  refused([](ModelFolder& c) { c.weights.emplace_back("headkit.gates.heads", at::ones(1)); });
  EXPECT_THROW(write_model_folder(scratch / "no/parent", pruned_model(1)), std::runtime_error);
}

TEST(ModelFolderTest, OldWeightsGoOnceTheNewOnesAreInPlace) {
  const ScratchFolder scratch;
  write_model_folder(scratch / "model", pruned_model(1));
  write_all(scratch / "model/notes.txt", "mine");
  const std::string first = read_model_folder(scratch / "model").weights_sha256;
  write_model_folder(scratch / "model", pruned_model(2));
  const std::string second = read_model_folder(scratch / "model").weights_sha256;
  EXPECT_NE(first, second);
  EXPECT_FALSE(std::filesystem::exists(scratch / ("model/weights-" + first + ".safetensors")));
  EXPECT_TRUE(std::filesystem::exists(scratch / "model/notes.txt"));
}

TEST(ModelFolderTest, AFullDiskLeavesTheOldModel) {
  const ScratchFolder scratch;
  write_model_folder(scratch / "model", pruned_model(1));
  const std::string before = read_all(scratch / "model/headkit.json");
  ModelFolder large = pruned_model(2);
  large.weights.emplace_back("large", at::zeros({1 << 20}));
  rlimit unlimited{};
  ASSERT_EQ(0, ::getrlimit(RLIMIT_FSIZE, &unlimited));
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{1 << 16, unlimited.rlim_max};
  ASSERT_EQ(0, ::setrlimit(RLIMIT_FSIZE, &limit));
  EXPECT_THROW(write_model_folder(scratch / "model", large), std::runtime_error);
  ::setrlimit(RLIMIT_FSIZE, &unlimited);
  ::signal(SIGXFSZ, handler);
  EXPECT_EQ(read_all(scratch / "model/headkit.json"), before);
  EXPECT_NO_THROW(read_model_folder(scratch / "model"));
}

TEST(ModelFolderTest, AKilledSaveLeavesOneOfTheTwoModels) {
  const ScratchFolder scratch;
  const std::string folder = scratch / "model";
  const ModelFolder models[] = {pruned_model(1), pruned_model(2)};
  write_model_folder(folder, models[0]);
  std::mt19937 random(5);
  for (int round = 0; round < 100; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (int i = 1;; ++i) write_model_folder(folder, models[i % 2]);
    }
    ::usleep(random() % 20000);
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    const ModelFolder found = read_model_folder(folder);
    EXPECT_TRUE(found.base_fingerprint == models[0].base_fingerprint ||
                found.base_fingerprint == models[1].base_fingerprint);
    const ModelFolder& expected = models[found.base_fingerprint == models[1].base_fingerprint];
    EXPECT_TRUE(at::equal(found.gates.dropped_output, expected.gates.dropped_output));
  }
}

}  // namespace
}  // namespace headkit
