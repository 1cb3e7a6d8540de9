#include "headkit/persistence/model_folder.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <stdexcept>
#include <utility>

#include "core/json.h"
#include "headkit/core/error.h"
#include "headkit/core/version.h"
#include "headkit/pruners/removal.h"
#include "persistence/text_file.h"
#include "persistence/write_safetensors.h"

namespace headkit {
namespace {

constexpr char kManifest[] = "headkit.json";
constexpr char kConfig[] = "config.json";
// The tensors of a GateSet, by their names in the weights file.
constexpr std::pair<const char*, at::Tensor GateSet::*> kGateTensors[] = {
    {"headkit.gates.heads", &GateSet::heads},
    {"headkit.gates.dropped_output", &GateSet::dropped_output},
    {"headkit.gates.blocks", &GateSet::blocks},
    {"headkit.gates.dropped_blocks", &GateSet::dropped_blocks},
    {"headkit.gates.neurons", &GateSet::neurons},
    {"headkit.gates.attention_sublayers", &GateSet::attention_sublayers},
    {"headkit.gates.feed_forward_sublayers", &GateSet::feed_forward_sublayers},
    {"headkit.gates.hidden", &GateSet::hidden}};
constexpr size_t kMaxManifestBytes = size_t{64} << 20;
constexpr size_t kHashDigits = 64;

std::string weights_name(const std::string& hash) { return "weights-" + hash + ".safetensors"; }

bool is_hash(const std::string& text) {
  return text.size() == kHashDigits &&
         text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

Json json_or_null(const char* what, const std::string& text) {
  return text.empty() ? Json(nullptr) : parse_json(what, text);
}

// Whether a folder says more than one that knows heads alone.
bool has_units(const ModelFolder& content) {
  const GateSet& gates = content.gates;
  return content.neurons.defined() || !content.sublayers.attention.empty() ||
         !content.sublayers.feed_forward.empty() || gates.gates_feed_forward() ||
         gates.attention_sublayers.defined() || gates.hidden.defined();
}

Json neurons_to_json(const at::Tensor& neurons) {
  if (!neurons.defined()) return nullptr;
  Json kept = Json::array();
  for (int64_t layer = 0; layer < neurons.size(0); ++layer) {
    const at::Tensor index = neurons[layer].nonzero().flatten().cpu();
    const auto* first = index.const_data_ptr<int64_t>();
    kept.push_back(std::vector<int64_t>(first, first + index.numel()));
  }
  return {{"count", neurons.size(1)}, {"kept", kept}};
}

// Bool [L, F]; `most` is the largest F that makes sense.
at::Tensor neurons_from_json(const Json& json, int64_t most) {
  if (json.is_null()) return {};
  const int64_t count = integer_member("load", json, "count");
  HEADKIT_CHECK(count > 0 && count == most, "load",
                "as many neurons as the layout has, " + std::to_string(most), count);
  const Json& kept = member("load", json, "kept");
  HEADKIT_CHECK(kept.is_array() && !kept.empty(), "load", "neurons of each layer",
                kept.type_name());
  at::Tensor neurons = at::zeros({static_cast<int64_t>(kept.size()), count}, at::kBool);
  for (size_t layer = 0; layer < kept.size(); ++layer) {
    HEADKIT_CHECK(kept[layer].is_array(), "load", "a list of neurons", kept[layer].type_name());
    auto* row = neurons[static_cast<int64_t>(layer)].mutable_data_ptr<bool>();
    int64_t previous = -1;
    for (const Json& entry : kept[layer]) {
      HEADKIT_CHECK(entry.is_number_integer(), "load", "whole numbers as neurons", entry.dump());
      const auto neuron = entry.get<int64_t>();
      HEADKIT_CHECK(neuron > previous && neuron < count, "load",
                    "ascending neurons below " + std::to_string(count), neuron);
      row[neuron] = true;
      previous = neuron;
    }
  }
  return neurons;
}

std::vector<bool> open_from_json(const Json& json) {
  HEADKIT_CHECK(json.is_array(), "load", "a list of open blocks", json.type_name());
  std::vector<bool> open;
  for (const Json& entry : json) {
    HEADKIT_CHECK(entry.is_boolean(), "load", "true or false for a block", entry.dump());
    open.push_back(entry.get<bool>());
  }
  return open;
}

std::string text_or_empty(const Json& value) { return value.is_null() ? "" : value.dump(); }

void check_unit_gates(const char* operation, const ModelFolder& content) {
  const GateSet& gates = content.gates;
  const at::Tensor& any = gates.neurons.defined() ? gates.neurons : gates.feed_forward_sublayers;
  if (any.defined() && any.dim() > 0) {
    gates.check_feed_forward(operation, -1, any.size(0), content.layout.feed_forward);
  }
  gates.check_hidden(operation, content.layout.model_dim);
}

void check_sublayers(const char* operation, const ModelFolder& content) {
  const auto& [attention, feed_forward] = content.sublayers;
  HEADKIT_CHECK(
      attention.empty() || static_cast<int64_t>(attention.size()) == content.layout.layers,
      operation, "an entry for each of " + std::to_string(content.layout.layers) + " blocks",
      attention.size());
  const int64_t rows = content.neurons.defined() ? content.neurons.size(0) : -1;
  HEADKIT_CHECK(
      feed_forward.empty() || rows < 0 || static_cast<int64_t>(feed_forward.size()) == rows,
      operation, "an entry for each of " + std::to_string(rows) + " feed-forward blocks",
      feed_forward.size());
}

void check_content(const ModelFolder& content) {
  content.layout.check("save");
  HEADKIT_CHECK(content.heads.layers() == content.layout.layers &&
                    content.heads.heads() == content.layout.heads,
                "save", "a head mask of the layout's size", content.heads.layers(), " layers of ",
                content.heads.heads());
  HEADKIT_CHECK(is_hash(content.base_fingerprint), "save",
                "the fingerprint of the base model, 64 hexadecimal digits", "'",
                content.base_fingerprint,
                "'; a model that was pruned no longer knows its base, give it");
  const GateSet& gates = content.gates;
  if (gates.heads.defined()) {
    HEADKIT_CHECK(gates.heads.dim() == 2, "save", "static gates [layers, heads]", "shape ",
                  gates.heads.sizes());
  }
  gates.check("save", -1, content.layout.layers, content.layout.heads);
  if (gates.blocks.defined()) {
    HEADKIT_CHECK(gates.blocks.dim() == 2, "save", "static gates of blocks [layers, blocks]",
                  "shape ", gates.blocks.sizes());
    gates.check_blocks("save", -1, gates.blocks.size(0), gates.blocks.size(1));
  }
  const auto fixed = [](const at::Tensor& given, int64_t rank, const char* what) {
    HEADKIT_CHECK(!given.defined() || given.dim() == rank, "save",
                  c10::str("static gates of ", what), "shape ", given.sizes());
  };
  fixed(gates.neurons, 2, "neurons [layers, neurons]");
  fixed(gates.attention_sublayers, 1, "attention blocks [layers]");
  fixed(gates.feed_forward_sublayers, 1, "feed-forward blocks [layers]");
  check_unit_gates("save", content);
  HEADKIT_CHECK(!content.neurons.defined() ||
                    (content.neurons.dim() == 2 && content.neurons.scalar_type() == at::kBool &&
                     content.neurons.size(1) == content.layout.feed_forward),
                "save", "neurons of the layout, bool [layers, neurons]", "shape ",
                content.neurons.sizes());
  check_sublayers("save", content);
  for (const auto& [name, tensor] : content.weights) {
    for (const auto& [gate_name, member] : kGateTensors) {
      HEADKIT_CHECK(name != gate_name, "save", "no weight under a name of headkit", "'", name, "'");
    }
  }
}

// What an earlier save, finished or killed, left behind.
void drop_leftovers(const std::string& folder, const std::string& current) {
  constexpr auto kAbandoned =
      std::chrono::hours(24);  // a save beside this one may still be writing
  const auto now = std::filesystem::file_time_type::clock::now();
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    const bool weights = name != current && name.size() == weights_name("").size() + kHashDigits &&
                         name == weights_name(name.substr(8, kHashDigits)) &&
                         is_hash(name.substr(8, kHashDigits));
    const bool abandoned =
        AtomicFile::is_temporary(name) && now - entry.last_write_time(ignored) > kAbandoned;
    if (weights || abandoned) std::filesystem::remove(entry.path(), ignored);
  }
}

ModelFolder read_manifest(const std::string& folder, const Json& manifest) {
  const int64_t schema = integer_member("load", manifest, "schema");
  HEADKIT_CHECK(schema >= 1, "load", "a positive schema", schema);
  HEADKIT_CHECK(schema <= ModelFolder::kSchema, "load",
                "schema " + std::to_string(ModelFolder::kSchema) + " or older", schema,
                ", written by a newer headkit; upgrade headkit");
  ModelFolder content;
  content.headkit_version = string_member("load", manifest, "headkit");
  content.torch_version = string_member("load", manifest, "torch");
  content.layout = HeadLayout::from_json(member("load", manifest, "layout").dump());
  content.layout.check("load");
  content.heads = HeadMask::from_json(member("load", manifest, "heads").dump());
  HEADKIT_CHECK(content.heads.layers() == content.layout.layers &&
                    content.heads.heads() == content.layout.heads,
                "load", "heads that fit the layout", content.heads.layers(), " layers of ",
                content.heads.heads());
  if (schema >= 2) {
    content.neurons =
        neurons_from_json(member("load", manifest, "neurons"), content.layout.feed_forward);
    const Json& blocks = member("load", manifest, "blocks");
    content.sublayers = {open_from_json(member("load", blocks, "attention")),
                         open_from_json(member("load", blocks, "feed_forward"))};
    check_sublayers("load", content);
  }
  content.base_fingerprint = string_member("load", manifest, "base_fingerprint");
  HEADKIT_CHECK(is_hash(content.base_fingerprint), "load", "a fingerprint of 64 digits",
                content.base_fingerprint.size(), " characters");
  content.policy = text_or_empty(member("load", manifest, "policy"));
  content.config = text_or_empty(member("load", manifest, "config"));
  content.details = text_or_empty(member("load", manifest, "details"));

  const Json& weights = member("load", manifest, "weights");
  content.weights_sha256 = string_member("load", weights, "sha256");
  HEADKIT_CHECK(is_hash(content.weights_sha256), "load", "a weights hash of 64 digits",
                content.weights_sha256.size(), " characters");
  return content;
}

}  // namespace

void write_model_folder(const std::string& folder, const ModelFolder& content) {
  check_content(content);
  NamedTensors tensors = content.weights;
  Json gates = nullptr;
  if (!content.gates.empty()) {
    gates = {{"skip", content.gates.skip}};
    for (const auto& [name, member] : kGateTensors) {
      const at::Tensor& tensor = content.gates.*member;
      if (tensor.defined()) tensors.emplace_back(name, tensor);
    }
  }
  const std::string config = text_or_empty(json_or_null("save", content.config));
  Json manifest = {{"schema", has_units(content) ? ModelFolder::kSchema : 1},
                   {"headkit", HEADKIT_VERSION},
                   {"torch", HEADKIT_TORCH_VERSION},
                   {"base_fingerprint", content.base_fingerprint},
                   {"layout", parse_json("save", content.layout.to_json())},
                   {"heads", parse_json("save", content.heads.to_json())},
                   {"gates", gates},
                   {"policy", json_or_null("save", content.policy)},
                   {"config", json_or_null("save", content.config)},
                   {"details", json_or_null("save", content.details)}};
  if (has_units(content)) {
    manifest["neurons"] = neurons_to_json(content.neurons);
    manifest["blocks"] = {{"attention", content.sublayers.attention},
                          {"feed_forward", content.sublayers.feed_forward}};
  }

  std::error_code error;
  std::filesystem::create_directory(folder, error);
  HEADKIT_CHECK_RUNTIME(std::filesystem::is_directory(folder, error), "save",
                        "a folder that exists or can be made", "'", folder, "'",
                        error ? ": " + error.message() : std::string());

  // Everything is on disk under a temporary name before the first rename.
  AtomicFile weights_file("save", folder);
  const std::string hash = write_safetensors(weights_file, tensors, {{"format", "pt"}});
  manifest["weights"] = {{"file", weights_name(hash)},
                         {"sha256", hash},
                         {"tensors", static_cast<int64_t>(tensors.size())}};
  AtomicFile manifest_file("save", folder);
  const std::string text = manifest.dump(1) + "\n";
  HEADKIT_CHECK(text.size() <= kMaxManifestBytes, "save", "a headkit.json of 64 MiB at most",
                text.size(), " bytes; is the policy or the configuration that large?");
  manifest_file.write(text.data(), text.size());
  manifest_file.finish();
  AtomicFile config_file("save", folder);
  config_file.write(config.data(), config.size());
  config_file.finish();

  weights_file.commit(weights_name(hash));
  if (!config.empty()) config_file.commit(kConfig);
  manifest_file.commit(kManifest);
  drop_leftovers(folder, weights_name(hash));
}

ModelFolder read_model_folder(const std::string& folder) {
  const std::string path = folder + "/" + kManifest;
  const std::string text = read_text_file(path, "a folder written by headkit", kMaxManifestBytes);
  ModelFolder content;
  Json gates;
  try {
    const Json manifest = parse_json("load", text);
    content = read_manifest(folder, manifest);
    gates = member("load", manifest, "gates");
    HEADKIT_CHECK(gates.is_null() ||
                      (gates.is_object() && gates.contains("skip") && gates["skip"].is_boolean()),
                  "load", "gates that are null or an object with 'skip'", "something else");
  } catch (const std::logic_error& error) {
    throw std::runtime_error(std::string(error.what()) + " (in '" + path + "')");
  }

  const std::string weights_path = folder + "/" + weights_name(content.weights_sha256);
  const SafetensorsFile file(weights_path);
  const std::string hash = file.sha256();
  HEADKIT_CHECK_RUNTIME(hash == content.weights_sha256, "load",
                        "weights with SHA-256 " + content.weights_sha256, hash, " in '",
                        weights_path, "': the file was changed or damaged, copy the folder again");
  for (const auto& [name, tensor] : file.tensors()) {
    const auto* gate =
        std::find_if(std::begin(kGateTensors), std::end(kGateTensors),
                     [&, own = name](const auto& known) { return own == known.first; });
    if (gate != std::end(kGateTensors)) {
      content.gates.*(gate->second) = tensor;
    } else {
      content.weights.emplace_back(name, tensor);
    }
  }
  HEADKIT_CHECK_RUNTIME(gates.is_null() == content.gates.empty(), "load",
                        "gates in both files or in none", "them in one of '", folder, "'");
  if (!gates.is_null()) {
    content.gates.skip = gates["skip"].get<bool>();
    try {
      content.gates.check("load", -1, content.layout.layers, content.layout.heads);
      if (const at::Tensor& blocks = content.gates.blocks; blocks.defined()) {
        HEADKIT_CHECK(blocks.dim() == 2, "load", "static gates of blocks [layers, blocks]",
                      "shape ", blocks.sizes());
        content.gates.check_blocks("load", -1, blocks.size(0), blocks.size(1));
      }
      check_unit_gates("load", content);
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error(error.what());
    }
  }
  return content;
}

ModelFolder describe_model(GatedModel& model, const std::string& base_fingerprint) {
  ModelFolder content;
  content.layout = model.layout();
  content.heads = model.heads();
  content.base_fingerprint = base_fingerprint;
  if (base_fingerprint.empty()) {
    HEADKIT_CHECK(model.is_whole(), "save",
                  "the fingerprint of the base of a model that was pruned", "none");
    content.base_fingerprint = model.fingerprint();
  }
  if (model.gated_units().neurons) {
    const at::Tensor neurons = model.neurons();
    if (!neurons.all().item<bool>()) content.neurons = neurons;
  }
  if (const Sublayers open = model.sublayers(); !open.all()) content.sublayers = open;
  content.weights = model.parameters();
  return content;
}

namespace {

// Empty if every saved weight has its place in the model, and the other way round.
std::string misfit(const NamedTensors& target, const NamedTensors& saved) {
  std::map<std::string, at::Tensor> by_name(saved.begin(), saved.end());
  for (const auto& [name, tensor] : target) {
    const auto found = by_name.find(name);
    if (found == by_name.end()) return "no weight '" + name + "' in the folder";
    if (found->second.sizes() != tensor.sizes() ||
        found->second.scalar_type() != tensor.scalar_type()) {
      std::ostringstream text;
      text << "'" << name << "' of shape " << found->second.sizes() << " "
           << found->second.dtype().name() << " for " << tensor.sizes() << " "
           << tensor.dtype().name();
      return text.str();
    }
    by_name.erase(found);
  }
  return by_name.empty() ? "" : "weight '" + by_name.begin()->first + "', which the model lacks";
}

// Gives a layer an output bias where the saved one has one that its original lacks: the mean output
// of heads that were removed.
void adopt_output_bias(GatedModel& model, int64_t layer, const std::vector<int64_t>& heads,
                       const std::set<std::string>& saved) {
  const AttentionWeights without = model.attention(layer);
  if (without.o_bias.defined()) return;
  AttentionWeights with = without;
  with.o_bias = at::zeros({without.o.size(0)}, without.o.options());
  model.replace_attention(layer, with, heads);
  const at::Tensor bias = model.attention(layer).o_bias;
  for (const auto& [name, tensor] : model.parameters()) {
    if (tensor.is_same(bias) && saved.count(name) > 0) return;
  }
  model.replace_attention(layer, without, heads);
}

// Hard gates of everything that a folder lacks.
GateSet what_is_gone(GatedModel& model, const ModelFolder& content) {
  GateSet gates = GateSet::from_mask(content.heads);
  const auto mask = [](const std::vector<bool>& open) {
    at::Tensor gates = at::ones({static_cast<int64_t>(open.size())});
    for (size_t i = 0; i < open.size(); ++i) {
      if (!open[i]) gates[static_cast<int64_t>(i)] = 0;
    }
    return gates;
  };
  if (content.neurons.defined()) gates.neurons = content.neurons.to(at::kFloat);
  if (!content.sublayers.attention.empty()) {
    gates.attention_sublayers = mask(content.sublayers.attention);
  }
  if (!content.sublayers.feed_forward.empty()) {
    gates.feed_forward_sublayers = mask(content.sublayers.feed_forward);
  }
  model.check("load", -1, gates);
  return gates;
}

// The blocks of a whole model, to put back what was removed.
class WholeModel {
 public:
  explicit WholeModel(GatedModel& model) : model_(model), heads_(model.heads()) {
    for (int64_t layer = 0; layer < heads_.layers(); ++layer) {
      attention_.push_back(model.attention(layer));
    }
    if (!model.gated_units().neurons) return;
    neurons_ = model.neurons();
    for (int64_t layer = 0; layer < neurons_.size(0); ++layer) {
      feed_forward_.push_back(model.feed_forward(layer));
    }
  }
  void put_back() const {
    const HeadMask heads = model_.heads();
    for (int64_t layer = 0; layer < heads_.layers(); ++layer) {
      if (heads.layer_heads(layer) == heads_.layer_heads(layer)) continue;
      model_.replace_attention(layer, attention_[layer], heads_.layer_heads(layer));
    }
    for (size_t i = 0; i < feed_forward_.size(); ++i) {
      const auto layer = static_cast<int64_t>(i);
      if (model_.neurons()[layer].all().item<bool>()) continue;
      std::vector<int64_t> all(static_cast<size_t>(neurons_.size(1)));
      std::iota(all.begin(), all.end(), 0);
      model_.replace_feed_forward(layer, feed_forward_[i], all);
    }
    Sublayers open = model_.sublayers();
    if (open.all()) return;
    open.attention.assign(open.attention.size(), true);
    open.feed_forward.assign(open.feed_forward.size(), true);
    model_.set_sublayers(open);
  }

 private:
  GatedModel& model_;
  HeadMask heads_;
  at::Tensor neurons_;
  std::vector<AttentionWeights> attention_;
  std::vector<FeedForwardWeights> feed_forward_;
};

}  // namespace

void restore_model(GatedModel& model, const ModelFolder& content, bool check_base) {
  HEADKIT_CHECK(model.layout() == content.layout, "load",
                "a model of layout " + content.layout.to_json(), model.layout().to_json());
  HEADKIT_CHECK(model.is_whole(), "load", "the unpruned base model",
                "heads, neurons or blocks already removed; load the original model first");
  if (check_base) {
    const std::string found = model.fingerprint();
    HEADKIT_CHECK(found == content.base_fingerprint, "load",
                  "the base model with fingerprint " + content.base_fingerprint, found,
                  ": another or a changed model. It was left as it is; give the original, or none "
                  "to build it from the folder");
  }

  const WholeModel whole(model);
  const HeadMask before = model.heads();
  remove_units(model, what_is_gone(model, content));
  std::set<std::string> names;
  for (const auto& [name, tensor] : content.weights) names.insert(name);
  for (int64_t layer = 0; layer < content.layout.layers; ++layer) {
    const std::vector<int64_t> heads = content.heads.layer_heads(layer);
    if (heads != before.layer_heads(layer)) adopt_output_bias(model, layer, heads, names);
  }
  const NamedTensors target = model.parameters();
  const std::string problem = misfit(target, content.weights);
  if (!problem.empty()) {
    whole.put_back();
    throw std::invalid_argument(
        error_message("load", "weights that fit the model", problem, "; it was left as it is"));
  }
  const c10::NoGradGuard no_grad;
  const std::map<std::string, at::Tensor> saved(content.weights.begin(), content.weights.end());
  for (const auto& [name, tensor] : target) at::Tensor(tensor).copy_(saved.at(name));
}

}  // namespace headkit
