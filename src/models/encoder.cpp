#include "headkit/models/encoder.h"

#include <ATen/ATen.h>

#include <map>
#include <numeric>
#include <optional>

#include "headkit/core/error.h"
#include "models/direct_runs.h"
#include "models/encoder_embeddings.h"
#include "models/encoder_family.h"
#include "models/encoder_head.h"
#include "models/encoder_layer.h"

namespace headkit {
namespace {

constexpr char kOperation[] = "encoder";

// Fills places from tensors by name, each only once it is known to fit.
class WeightReader {
 public:
  WeightReader(const EncoderFamily& family, bool is_base,
               const std::vector<std::pair<std::string, at::Tensor>>& weights) {
    for (const auto& [name, tensor] : weights) {
      const std::string parameter = family.parameter_name(name, is_base);
      const bool is_new = by_name_.emplace(parameter, tensor).second;
      HEADKIT_CHECK(is_new, kOperation, "every weight once", "two for '", parameter, "'");
    }
  }

  bool contains(const std::string& name) const { return by_name_.count(name) > 0; }

  void operator()(const std::string& name, at::Tensor& place, const std::vector<int64_t>& shape) {
    const auto found = by_name_.find(name);
    HEADKIT_CHECK(found != by_name_.end(), kOperation,
                  c10::str("a weight '", name, "' of shape ", at::IntArrayRef(shape)), "none");
    const at::Tensor& given = found->second;
    HEADKIT_CHECK(given.sizes() == at::IntArrayRef(shape), kOperation,
                  c10::str("'", name, "' of shape ", at::IntArrayRef(shape)), "shape ",
                  given.sizes());
    if (!first_.defined()) {
      const at::ScalarType dtype = given.scalar_type();
      HEADKIT_CHECK(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 ||
                        dtype == at::kHalf,
                    kOperation, "weights of float32, float64, bfloat16 or float16",
                    given.scalar_type());
      first_ = given;
    }
    HEADKIT_CHECK(given.scalar_type() == first_.scalar_type() && given.device() == first_.device(),
                  kOperation,
                  c10::str("all weights of dtype ", first_.scalar_type(), " on ", first_.device()),
                  "'", name, "' of ", given.scalar_type(), " on ", given.device());
    place = given.detach().set_requires_grad(true);
  }

 private:
  std::map<std::string, at::Tensor> by_name_;
  at::Tensor first_;
};

std::vector<int64_t> all_of(int64_t count) {
  std::vector<int64_t> all(static_cast<size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

std::vector<int64_t> places_of(const at::Tensor& there) {
  const at::Tensor index = there.nonzero().flatten().cpu();
  const auto* first = index.const_data_ptr<int64_t>();
  return {first, first + index.numel()};
}

void check_units(const EncoderUnits& units, const HeadLayout& layout) {
  const HeadMask& heads = units.heads;
  HEADKIT_CHECK(
      heads.layers() == 0 || (heads.layers() == layout.layers && heads.heads() == layout.heads),
      kOperation, c10::str("heads of ", layout.layers, " layers with ", layout.heads, " each"),
      heads.layers(), " with ", heads.heads());
  const at::Tensor& neurons = units.neurons;
  HEADKIT_CHECK(!neurons.defined() ||
                    (neurons.sizes() == at::IntArrayRef({layout.layers, layout.feed_forward}) &&
                     neurons.scalar_type() == at::kBool),
                kOperation,
                c10::str("neurons, bool [", layout.layers, ", ", layout.feed_forward, "]"),
                neurons.scalar_type(), " ", neurons.sizes());
  for (const auto* open : {&units.sublayers.attention, &units.sublayers.feed_forward}) {
    HEADKIT_CHECK(open->empty() || static_cast<int64_t>(open->size()) == layout.layers, kOperation,
                  c10::str("an entry for each of ", layout.layers, " blocks"), open->size());
  }
}

// A layer without weights.
EncoderLayer empty_layer(const EncoderConfig& config, const EncoderFamily& family,
                         const EncoderUnits& units, int64_t number) {
  const HeadLayout& layout = config.layout;
  const auto heads =
      units.heads.layers() > 0 ? units.heads.layer_heads(number) : all_of(layout.heads);
  const auto neurons =
      units.neurons.defined() ? places_of(units.neurons[number]) : all_of(layout.feed_forward);
  EncoderLayer layer{.attention = AttentionBlock(layout, number, heads, config.qkv_bias),
                     .feed_forward = FeedForwardBlock(layout, number, neurons, config.activation),
                     .attention_norm = LayerNorm(config.norm_eps),
                     .feed_forward_norm = LayerNorm(config.norm_eps),
                     .norm_first = family.norm_first};
  const auto is_open = [&](const std::vector<bool>& open) {
    return open.empty() || open[static_cast<size_t>(number)];
  };
  layer.attention.open = is_open(units.sublayers.attention);
  layer.feed_forward.open = is_open(units.sublayers.feed_forward);
  return layer;
}

}  // namespace

struct Encoder::Parts {
  EncoderConfig config;
  const EncoderFamily& family;
  std::unique_ptr<EncoderEmbeddings> embeddings;
  std::vector<EncoderLayer> layers;
  EncoderHead output;
  std::string base_fingerprint;

  std::string prefix() const { return config.labels > 0 ? family.prefix : ""; }
  std::string layer_prefix(int64_t layer) const {
    return prefix() + family.layers + std::to_string(layer) + ".";
  }
  // In the order of the state dictionary.
  void visit(const ParameterVisitor& visitor) {
    if (family.lists_classifier_first) output.visit_classifier(visitor);
    embeddings->visit(prefix(), visitor);
    for (size_t l = 0; l < layers.size(); ++l) {
      const std::string path = layer_prefix(static_cast<int64_t>(l));
      layers[l].visit(path, family, config.layout.model_dim, visitor);
    }
    output.visit_base(prefix(), visitor);
    if (!family.lists_classifier_first) output.visit_classifier(visitor);
  }
  EncoderLayer& layer(const char* operation, int64_t number) {
    HEADKIT_CHECK_INDEX(number >= 0 && number < static_cast<int64_t>(layers.size()), operation,
                        c10::str("a layer below ", layers.size()), number);
    return layers[static_cast<size_t>(number)];
  }
};

Encoder::Encoder(EncoderConfig config,
                 const std::vector<std::pair<std::string, at::Tensor>>& weights,
                 const EncoderUnits& units, std::string base_fingerprint) {
  const HeadLayout layout = config.layout;
  layout.check(kOperation);
  check_units(units, layout);
  const EncoderFamily* family = find_family(config.model_type);
  HEADKIT_CHECK(family != nullptr, kOperation, "model_type " + family_names(), "'",
                config.model_type, "'");
  auto embeddings =
      family->norm_first ? make_patch_embeddings(config) : make_token_embeddings(config, *family);
  EncoderHead output(config, *family);
  parts_ = std::make_unique<Parts>(Parts{std::move(config),
                                         *family,
                                         std::move(embeddings),
                                         {},
                                         std::move(output),
                                         std::move(base_fingerprint)});
  Parts& parts = *parts_;
  const bool is_base = parts.config.labels == 0;
  WeightReader reader(*family, is_base, weights);
  const ParameterVisitor read = std::ref(reader);
  parts.embeddings->visit(parts.prefix(), read);
  // Layer by layer, so that a configuration of very many ends at the first that is not there.
  for (int64_t l = 0; l < layout.layers; ++l) {
    EncoderLayer layer = empty_layer(parts.config, *family, units, l);
    layer.visit(parts.layer_prefix(l), *family, layout.model_dim, read);
    parts.layers.push_back(std::move(layer));
  }
  if (is_base && parts.output.has_pooler) {
    parts.output.has_pooler = reader.contains(family->pooler + std::string(".weight"));
  }
  parts.output.visit_base(parts.prefix(), read);
  parts.output.visit_classifier(read);
}

Encoder::~Encoder() = default;

const EncoderConfig& Encoder::config() const { return parts_->config; }

std::string Encoder::base_fingerprint() { return is_whole() ? "" : parts_->base_fingerprint; }

void Encoder::remember_base(std::string fingerprint) {
  parts_->base_fingerprint = std::move(fingerprint);
}

HeadLayout Encoder::layout() const { return parts_->config.layout; }

HeadMask Encoder::heads() const {
  const HeadLayout& size = parts_->config.layout;
  at::Tensor keep = at::zeros({size.layers, size.heads}, at::kBool);
  for (int64_t l = 0; l < size.layers; ++l) {
    keep[l].index_fill_(0, at::tensor(parts_->layers[l].attention.kept(), at::kLong), true);
  }
  return HeadMask(keep);
}

GatedUnits Encoder::gated_units() const {
  return {.neurons = true,
          .attention_sublayers = true,
          .feed_forward_sublayers = true,
          .hidden = !parts_->family.norm_first};
}

ModelState Encoder::embed(const Batch& batch) {
  ModelState state;
  state.hidden = (*parts_->embeddings)(batch);
  state.attention_mask = parts_->embeddings->attention_mask(batch);
  state.batch = batch;
  return state;
}

ModelState Encoder::run(const ModelState& state, int64_t first, int64_t last, const GateSet& gates,
                        Taps* taps) {
  const HeadLayout& size = parts_->config.layout;
  HEADKIT_CHECK(state.layer == first && first <= last && last <= size.layers, "run",
                c10::str("layers ", state.layer, " to at most ", size.layers), first, " to ", last);
  const int64_t batch = state.hidden.size(0);
  check("run", batch, gates);
  const int64_t blocks = (size.feed_forward + kNeuronBlock - 1) / kNeuronBlock;
  gates.check_blocks("run", batch, size.layers, blocks);
  ModelState next = state;
  // Gates of the stream hold from where it begins, before layer 0.
  if (gates.hidden.defined() && first == 0) {
    next.hidden = (*parts_->embeddings)(state.batch, gates.hidden);
  }
  for (int64_t l = first; l < last; ++l) {
    next.hidden = parts_->layers[l](next.hidden, state.attention_mask, gates, taps);
  }
  next.layer = last;
  return next;
}

at::Tensor Encoder::head(const ModelState& state) { return parts_->output(state.hidden); }

AttentionWeights Encoder::attention(int64_t layer) {
  return parts_->layer("attention", layer).attention.weights();
}

void Encoder::replace_attention(int64_t layer, const AttentionWeights& weights,
                                const std::vector<int64_t>& kept) {
  AttentionBlock& block = parts_->layer("replace_attention", layer).attention;
  block.check(weights, kept);
  const bool cuts = static_cast<int64_t>(kept.size()) < layout().heads;
  if (cuts && is_whole()) parts_->base_fingerprint = fingerprint();
  block.replace(weights, kept);
}

at::Tensor Encoder::neurons() {
  const HeadLayout& size = parts_->config.layout;
  at::Tensor there = at::zeros({size.layers, size.feed_forward}, at::kBool);
  for (int64_t l = 0; l < size.layers; ++l) {
    there[l].index_fill_(0, at::tensor(parts_->layers[l].feed_forward.kept(), at::kLong), true);
  }
  return there;
}

FeedForwardWeights Encoder::feed_forward(int64_t layer) {
  return parts_->layer("feed_forward", layer).feed_forward.weights();
}

void Encoder::replace_feed_forward(int64_t layer, const FeedForwardWeights& weights,
                                   const std::vector<int64_t>& kept) {
  FeedForwardBlock& block = parts_->layer("replace_feed_forward", layer).feed_forward;
  block.check(weights, kept);
  const bool cuts = static_cast<int64_t>(kept.size()) < layout().feed_forward;
  if (cuts && is_whole()) parts_->base_fingerprint = fingerprint();
  block.replace(weights, kept);
}

Sublayers Encoder::sublayers() {
  Sublayers open;
  for (const EncoderLayer& layer : parts_->layers) {
    open.attention.push_back(layer.attention.open);
    open.feed_forward.push_back(layer.feed_forward.open);
  }
  return open;
}

void Encoder::set_sublayers(const Sublayers& open) {
  const size_t count = parts_->layers.size();
  HEADKIT_CHECK(open.attention.size() == count && open.feed_forward.size() == count,
                "set_sublayers", c10::str(count, " attention and feed-forward blocks each"),
                open.attention.size(), " and ", open.feed_forward.size());
  if (!open.all() && is_whole()) parts_->base_fingerprint = fingerprint();
  for (size_t l = 0; l < count; ++l) {
    parts_->layers[l].attention.open = open.attention[l];
    parts_->layers[l].feed_forward.open = open.feed_forward[l];
  }
}

std::vector<std::pair<std::string, at::Tensor>> Encoder::parameters() {
  std::vector<std::pair<std::string, at::Tensor>> all;
  parts_->visit([&](const std::string& name, at::Tensor& place, const std::vector<int64_t>&) {
    all.emplace_back(name, place);
  });
  return all;
}

std::shared_ptr<void> Encoder::direct_paths() { return std::make_shared<DirectRuns>(); }

}  // namespace headkit
