#include "headkit/gates/latency_model.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <optional>

#include "core/json.h"
#include "gates/early_record.h"
#include "headkit/core/error.h"
#include "headkit/core/system.h"
#include "headkit/core/version.h"
#include "headkit/gates/isotonic.h"

namespace headkit {
namespace {

constexpr auto kOperation = "latency_model";
constexpr int64_t kHeadSteps = 4, kBlockSteps = 2;
constexpr double kMilli = 1e3;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <typename Run>
double least_milliseconds(int64_t repeats, const Run& run) {
  run();  // packs weights
  double least = std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < repeats; ++i) {
    const double start = now();
    run();
    least = std::min(least, now() - start);
  }
  return least * kMilli;
}

// The batch with so many rows, and tokens where its length can be chosen.
Batch resized(const Batch& batch, int64_t rows, int64_t tokens, int64_t length) {
  Batch result;
  for (const auto& [name, tensor] : batch) {
    at::Tensor sized =
        tensor.index_select(0, at::arange(rows, at::kLong).remainder(tensor.size(0)));
    if (tokens > 0 && tensor.dim() >= 2 && tensor.size(1) == length) {
      sized = sized.index_select(1, at::arange(tokens, at::kLong).remainder(length));
    }
    result[name] = sized;
  }
  return result;
}

// Whether the tokens of the batch are its second axis.
bool has_tokens(const Batch& batch, int64_t length) {
  const auto is_input = [&](const auto& entry) {
    const at::Tensor& tensor = entry.second;
    return entry.first != "attention_mask" && tensor.dim() >= 2 && tensor.dim() <= 3 &&
           tensor.size(1) == length;
  };
  return std::any_of(batch.begin(), batch.end(), is_input);
}

at::Tensor first_open(int64_t layers, int64_t units, int64_t open, const at::Tensor& hidden) {
  at::Tensor gates = at::zeros({layers, units}, gate_options(hidden));
  gates.slice(1, 0, open).fill_(1);
  return gates;
}

void raise(std::vector<double>& values, const std::vector<double>& least) {
  for (size_t i = 0; i < values.size(); ++i) values[i] = std::max(values[i], least[i]);
}

std::vector<double> monotone(const std::vector<double>& values) {
  const auto count = static_cast<int64_t>(values.size());
  const at::Tensor place = at::arange(count, at::kDouble);
  const IsotonicMap map = IsotonicMap::fit(place, at::tensor(values, at::kDouble));
  std::vector<double> fitted;
  for (int64_t i = 0; i < count; ++i) fitted.push_back(map(static_cast<double>(i)));
  return fitted;
}

double at_share(const std::vector<double>& values, double share) {
  const double place = std::clamp(share, 0.0, 1.0) * static_cast<double>(values.size() - 1);
  const auto below = std::min(static_cast<size_t>(place), values.size() - 2);
  return std::lerp(values[below], values[below + 1], place - static_cast<double>(below));
}

std::vector<double> mixed(const std::vector<double>& a, const std::vector<double>& b,
                          double share) {
  std::vector<double> result(a.size());
  for (size_t i = 0; i < a.size(); ++i) result[i] = std::lerp(a[i], b[i], share);
  return result;
}

std::vector<double> scaled(std::vector<double> values, double factor) {
  for (double& value : values) value *= factor;
  return values;
}

// The neighbours of `value` in an axis, the share of the upper one, and what lies beyond the end.
struct Place {
  size_t below, above;
  double share, beyond;
};
Place place_in(const std::vector<int64_t>& axis, double value) {
  const auto last = axis.size() - 1;
  if (value >= static_cast<double>(axis[last])) {
    return {last, last, 0, value / static_cast<double>(axis[last])};
  }
  if (value <= static_cast<double>(axis[0])) return {0, 0, 0, 1};
  size_t above = 1;
  while (static_cast<double>(axis[above]) < value) ++above;
  const double low = static_cast<double>(axis[above - 1]), high = static_cast<double>(axis[above]);
  return {above - 1, above, (value - low) / (high - low), 1};
}

void check_axis(const std::vector<int64_t>& axis, const char* what) {
  HEADKIT_CHECK(
      !axis.empty() && axis.front() > 0 &&
          std::adjacent_find(axis.begin(), axis.end(), std::greater_equal<>()) == axis.end(),
      kOperation, std::string("ascending ") + what + " > 0", c10::str(axis));
}

std::vector<double> numbers(const Json& json, const char* name) {
  const at::Tensor values = tensor_from_json(kOperation, member(kOperation, json, name), 1);
  const double* const data = values.const_data_ptr<double>();
  return {data, data + values.numel()};
}

std::vector<int64_t> axis_from(const Json& json, const char* name) {
  std::vector<int64_t> axis;
  for (const double value : numbers(json, name)) axis.push_back(static_cast<int64_t>(value));
  check_axis(axis, name);
  return axis;
}

}  // namespace

std::string LatencyModel::key_of(GatedModel& model, const Batch& batch) {
  const c10::NoGradGuard no_grad;
  const ModelState state = model.embed(batch);
  const HeadLayout layout = model.layout();
  return c10::str("headkit ", HEADKIT_VERSION, ", ", state.hidden.device(), ", ", active_isa(),
                  ", ", at::get_num_threads(), " threads, ", state.hidden.dtype().name(), ", ",
                  layout.layers, " layers of ", layout.heads, " heads of ", layout.head_dim, ", ",
                  layout.key_value_heads(), " KV heads, width ", layout.model_dim,
                  ", feed-forward ", layout.feed_forward);
}

LatencyModel LatencyModel::measure(GatedModel& model, const Batch& batch,
                                   const LatencyModelOptions& options) {
  check_axis(options.tokens, "tokens");
  check_axis(options.batches, "batch sizes");
  HEADKIT_CHECK(options.repeats >= 1, kOperation, "at least 1 repeat", options.repeats);
  HEADKIT_CHECK(options.seconds > 0, kOperation, "seconds > 0", options.seconds);
  HEADKIT_CHECK(batch_size(batch) > 0, kOperation, "a batch with examples", "none");
  const c10::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  LatencyModel result;
  result.key_ = key_of(model, batch);
  result.layout_ = model.layout();
  const HeadLayout& layout = result.layout_;
  const int64_t length = model.embed(batch).hidden.size(1);
  const bool chosen = has_tokens(batch, length);
  result.tokens_ = chosen ? options.tokens : std::vector<int64_t>{length};
  result.batches_ = options.batches;
  const int64_t blocks =
      options.blocks ? (layout.feed_forward + kNeuronBlock - 1) / kNeuronBlock : 0;

  struct Cell {
    size_t index;
    int64_t tokens, rows;
  };
  std::vector<Cell> cells;
  for (const int64_t tokens : result.tokens_) {
    for (const int64_t rows : result.batches_) cells.push_back({cells.size(), tokens, rows});
  }
  std::stable_sort(cells.begin(), cells.end(), [](const Cell& a, const Cell& b) {
    return a.tokens * a.rows < b.tokens * b.rows;
  });
  result.sizes_.resize(cells.size());
  const double start = now();
  double last_seconds = 0;
  const Cell* last = nullptr;
  for (const Cell& cell : cells) {
    const double ratio = last == nullptr ? 1
                                         : static_cast<double>(cell.tokens * cell.rows) /
                                               static_cast<double>(last->tokens * last->rows);
    Size& size = result.sizes_[cell.index];
    const double begun = now();
    if (last != nullptr && begun - start + last_seconds * ratio > options.seconds) {
      const Size& known = result.sizes_[last->index];
      size = {scaled(known.heads, ratio), scaled(known.blocks, ratio), known.other * ratio};
      continue;
    }
    const Batch sized = resized(batch, cell.rows, chosen ? cell.tokens : 0, length);
    const ModelState state = model.embed(sized);
    const auto layer = [&](int64_t heads_open, int64_t blocks_open) {
      GateSet gates;
      gates.heads = first_open(layout.layers, layout.heads, heads_open, state.hidden);
      if (blocks > 0) {
        gates.blocks = first_open(layout.layers, blocks, blocks_open, state.hidden);
      }
      return least_milliseconds(options.repeats, [&] { model.run(state, 0, 1, gates); });
    };
    for (int64_t i = 0; i <= kHeadSteps; ++i) {
      size.heads.push_back(layer(layout.heads * i / kHeadSteps, blocks));
    }
    for (int64_t i = 0; blocks > 0 && i <= kBlockSteps; ++i) {
      size.blocks.push_back(layer(layout.heads, blocks * i / kBlockSteps));
    }
    size.heads = monotone(size.heads);
    if (blocks > 0) size.blocks = monotone(size.blocks);
    ModelState end = state;
    end.layer = layout.layers;
    size.other = least_milliseconds(1, [&] {
      model.embed(sized);
      model.head(end);
    });
    ++result.measured_;
    last = &cell;
    last_seconds = now() - begun;
  }
  // Larger inputs take no less time, whatever the clock said.
  const size_t columns = result.batches_.size();
  for (size_t i = 0; i < result.sizes_.size(); ++i) {
    Size& size = result.sizes_[i];
    for (const size_t smaller : {i % columns > 0 ? i - 1 : i, i >= columns ? i - columns : i}) {
      raise(size.heads, result.sizes_[smaller].heads);
      raise(size.blocks, result.sizes_[smaller].blocks);
      size.other = std::max(size.other, result.sizes_[smaller].other);
    }
  }
  return result;
}

LatencyModel::Size LatencyModel::at(double tokens, double batch) const {
  HEADKIT_CHECK(tokens > 0 && batch > 0, kOperation, "tokens and batch size > 0",
                c10::str(tokens, " and ", batch));
  const Place row = place_in(tokens_, tokens), column = place_in(batches_, batch);
  const size_t columns = batches_.size();
  const auto along = [&](size_t t) {
    const Size &a = sizes_[t * columns + column.below], &b = sizes_[t * columns + column.above];
    return Size{mixed(a.heads, b.heads, column.share), mixed(a.blocks, b.blocks, column.share),
                std::lerp(a.other, b.other, column.share)};
  };
  const Size a = along(row.below), b = along(row.above);
  const double factor = row.beyond * column.beyond;
  return {scaled(mixed(a.heads, b.heads, row.share), factor),
          scaled(mixed(a.blocks, b.blocks, row.share), factor),
          std::lerp(a.other, b.other, row.share) * factor};
}

double LatencyModel::milliseconds(double heads, double blocks, int64_t tokens,
                                  int64_t batch) const {
  HEADKIT_CHECK(heads >= 0 && blocks >= 0, kOperation, "heads and blocks >= 0",
                c10::str(heads, " and ", blocks));
  const Size size = at(static_cast<double>(tokens), static_cast<double>(batch));
  double layer = at_share(size.heads, heads / static_cast<double>(layout_.total_heads()));
  if (!size.blocks.empty()) {
    const double all = static_cast<double>(layout_.layers) *
                       std::ceil(static_cast<double>(layout_.feed_forward) / kNeuronBlock);
    layer += at_share(size.blocks, blocks / all) - size.blocks.back();
  }
  return size.other + static_cast<double>(layout_.layers) * std::max(layer, 0.0);
}

LatencyTables LatencyModel::tables(int64_t tokens, int64_t batch) const {
  const Size size = at(static_cast<double>(tokens), static_cast<double>(batch));
  LatencyTables tables;
  for (int64_t k = 1; k <= layout_.heads; ++k) {
    const double share = static_cast<double>(k) / static_cast<double>(layout_.heads);
    tables.heads.push_back((at_share(size.heads, share) - size.heads.front()) / kMilli);
  }
  for (size_t k = 1; k < size.blocks.size(); ++k) {
    tables.neurons.push_back((size.blocks[k] - size.blocks.front()) / kMilli);
  }
  const double units = size.blocks.empty() ? 0 : size.blocks.back() - size.blocks.front();
  const double fixed =
      size.other + static_cast<double>(layout_.layers) * (size.heads.front() - units);
  tables.other = std::max(fixed, 0.0) / kMilli;
  return tables;
}

std::string LatencyModel::to_json() const {
  Json sizes = Json::array();
  for (const Size& size : sizes_) {
    sizes.push_back({{"heads", size.heads}, {"blocks", size.blocks}, {"other", size.other}});
  }
  return Json{{"version", 1},
              {"key", key_},
              {"layout",
               {{"layers", layout_.layers},
                {"heads", layout_.heads},
                {"feed_forward", layout_.feed_forward}}},
              {"tokens", tokens_},
              {"batches", batches_},
              {"measured", measured_},
              {"milliseconds", std::move(sizes)}}
      .dump();
}

LatencyModel LatencyModel::from_json(const std::string& text, const std::string& key) {
  const Json json = parse_json(kOperation, text);
  const int64_t version = integer_member(kOperation, json, "version");
  HEADKIT_CHECK(version == 1, kOperation, "version 1, as this headkit writes", version);
  LatencyModel result;
  result.key_ = string_member(kOperation, json, "key");
  HEADKIT_CHECK(result.key_ == key, kOperation, "measurements of '" + key + "'",
                "'" + result.key_ + "': measure anew");
  const Json& layout = member(kOperation, json, "layout");
  result.layout_.layers = integer_member(kOperation, layout, "layers");
  result.layout_.heads = integer_member(kOperation, layout, "heads");
  result.layout_.feed_forward = integer_member(kOperation, layout, "feed_forward");
  result.tokens_ = axis_from(json, "tokens");
  result.batches_ = axis_from(json, "batches");
  result.measured_ = integer_member(kOperation, json, "measured");
  const Json& sizes = member(kOperation, json, "milliseconds");
  HEADKIT_CHECK(sizes.is_array() && sizes.size() == result.tokens_.size() * result.batches_.size(),
                kOperation, "an entry for each length and batch size", sizes.size());
  for (const Json& size : sizes) {
    result.sizes_.push_back({numbers(size, "heads"), numbers(size, "blocks"),
                             number_member(kOperation, size, "other")});
    const Size& last = result.sizes_.back();
    HEADKIT_CHECK(last.heads.size() >= 2 && last.blocks.size() != 1 &&
                      last.heads.size() == result.sizes_.front().heads.size() &&
                      last.blocks.size() == result.sizes_.front().blocks.size(),
                  kOperation, "entries of equal size", "others");
  }
  return result;
}

void LatencyModel::save(const std::string& path) const {
  std::ofstream file(path);
  file << to_json() << "\n";
  file.flush();
  HEADKIT_CHECK_RUNTIME(file.good(), kOperation, "a file to write", path);
}

LatencyModel LatencyModel::load(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  HEADKIT_CHECK_RUNTIME(file.good(), kOperation, "a file to read", path);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return from_json(text, key);
}

}  // namespace headkit
