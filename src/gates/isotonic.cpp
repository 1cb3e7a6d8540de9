#include "headkit/gates/isotonic.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/json.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "isotonic";

struct Block {
  double weight, z, target;  // z and target are means

  void absorb(const Block& other) {
    const double total = weight + other.weight;
    z += (other.z - z) * (other.weight / total);
    target += (other.target - target) * (other.weight / total);
    weight = total;
  }
};

at::Tensor checked(const at::Tensor& values, const char* what, int64_t size) {
  HEADKIT_CHECK(values.defined() && values.dim() == 1 && values.scalar_type() == at::kDouble &&
                    values.is_cpu() && values.size(0) > 0 && (size < 0 || values.size(0) == size),
                kOperation,
                std::string("float64 ") + what + " of shape [" +
                    (size < 0 ? "n > 0" : std::to_string(size)) + "], CPU",
                values.defined() ? c10::str(values.scalar_type(), " ", values.sizes()) : "none");
  HEADKIT_CHECK(values.isfinite().all().item<bool>(), kOperation, std::string("finite ") + what,
                values.isfinite().logical_not().sum().item<int64_t>(), " that are not");
  return values.contiguous();
}

bool ascends(const std::vector<double>& values) {
  return std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); }) &&
         std::adjacent_find(values.begin(), values.end(), std::greater_equal<>()) == values.end();
}

}  // namespace

IsotonicMap::IsotonicMap(std::vector<double> centres, std::vector<double> values)
    : centres_(std::move(centres)), values_(std::move(values)) {
  HEADKIT_CHECK(!centres_.empty() && centres_.size() == values_.size(), kOperation,
                "as many values as centres, at least one", centres_.size(), " centres, ",
                values_.size(), " values");
  HEADKIT_CHECK(ascends(centres_), kOperation, "finite, ascending centres", c10::str(centres_));
  HEADKIT_CHECK(std::is_sorted(values_.begin(), values_.end()) && std::isfinite(values_.front()) &&
                    std::isfinite(values_.back()),
                kOperation, "finite values that do not descend", c10::str(values_));
}

IsotonicMap IsotonicMap::fit(const at::Tensor& z, const at::Tensor& target,
                             const at::Tensor& weight) {
  const at::Tensor places = checked(z, "z", -1);
  const int64_t count = places.size(0);
  const at::Tensor targets = checked(target, "targets", count);
  const at::Tensor weights =
      weight.defined() ? checked(weight, "weights", count) : at::ones({count}, at::kDouble);
  HEADKIT_CHECK((weights > 0).all().item<bool>(), kOperation, "weights > 0",
                weights.min().item<double>());

  const double* const at_z = places.const_data_ptr<double>();
  std::vector<int64_t> by_z(static_cast<size_t>(count));
  std::iota(by_z.begin(), by_z.end(), 0);
  std::stable_sort(by_z.begin(), by_z.end(),
                   [&](int64_t a, int64_t b) { return at_z[a] < at_z[b]; });
  std::vector<Block> points;
  for (const int64_t i : by_z) {
    const Block point{weights.const_data_ptr<double>()[i], at_z[i],
                      targets.const_data_ptr<double>()[i]};
    if (!points.empty() && points.back().z == point.z) {
      points.back().absorb(point);
      points.back().z = point.z;
    } else {
      points.push_back(point);
    }
  }
  std::vector<Block> blocks;
  for (const Block& point : points) {
    blocks.push_back(point);
    while (blocks.size() > 1 && blocks[blocks.size() - 2].target >= blocks.back().target) {
      const Block last = blocks.back();
      blocks.pop_back();
      blocks.back().absorb(last);
    }
  }
  std::vector<double> centres, values;
  for (const Block& block : blocks) {
    centres.push_back(block.z);
    values.push_back(block.target);
  }
  return IsotonicMap(std::move(centres), std::move(values));
}

IsotonicMap IsotonicMap::blend(double share, const IsotonicMap& own, const IsotonicMap& other) {
  HEADKIT_CHECK(share >= 0 && share <= 1, kOperation, "a share in [0, 1]", share);
  if (share == 1) return own;
  if (share == 0) return other;
  std::vector<double> centres;
  std::set_union(own.centres_.begin(), own.centres_.end(), other.centres_.begin(),
                 other.centres_.end(), std::back_inserter(centres));
  std::vector<double> values;
  for (const double z : centres) {
    const double value = share * own(z) + (1 - share) * other(z);
    // Rounding must not break the order.
    values.push_back(values.empty() ? value : std::max(value, values.back()));
  }
  return IsotonicMap(std::move(centres), std::move(values));
}

double IsotonicMap::operator()(double z) const {
  if (std::isnan(z)) return z;
  const auto above = std::upper_bound(centres_.begin(), centres_.end(), z);
  if (above == centres_.begin()) return values_.front();
  if (above == centres_.end()) return values_.back();
  const auto k = static_cast<size_t>(above - centres_.begin());
  const double share = (z - centres_[k - 1]) / (centres_[k] - centres_[k - 1]);
  return std::lerp(values_[k - 1], values_[k], share);
}

HeadIsotonic::HeadIsotonic(int64_t layers, int64_t heads, std::vector<IsotonicMap> maps)
    : layers_(layers), heads_(heads), maps_(std::move(maps)) {
  HEADKIT_CHECK(layers > 0 && heads > 0 && static_cast<int64_t>(maps_.size()) == layers * heads,
                kOperation, "a map for each head of at least one layer", maps_.size(), " maps for ",
                layers, " x ", heads);
}

void HeadIsotonic::check(const at::Tensor& logits) const {
  HEADKIT_CHECK(logits.defined() && logits.dim() == 3 && logits.scalar_type() == at::kDouble &&
                    logits.is_cpu() && logits.size(1) == layers_ && logits.size(2) == heads_,
                kOperation,
                c10::str("float64 logits of shape [batch, ", layers_, ", ", heads_, "], CPU"),
                logits.defined() ? c10::str(logits.scalar_type(), " ", logits.sizes()) : "none");
}

HeadIsotonic HeadIsotonic::fit(const at::Tensor& logits, const at::Tensor& importance,
                               double shrinkage) {
  HEADKIT_CHECK(logits.defined() && logits.dim() == 3 && logits.size(0) > 0, kOperation,
                "logits of shape [n > 0, layers, heads]",
                logits.defined() ? c10::str("shape ", logits.sizes()) : "none");
  HEADKIT_CHECK(importance.defined() && importance.sizes() == logits.sizes(), kOperation,
                c10::str("importance of shape ", logits.sizes()),
                importance.defined() ? c10::str("shape ", importance.sizes()) : "none");
  HEADKIT_CHECK(shrinkage >= 0 && std::isfinite(shrinkage), kOperation, "a finite shrinkage >= 0",
                shrinkage);
  const int64_t samples = logits.size(0), layers = logits.size(1), heads = logits.size(2);
  const double share = static_cast<double>(samples) / (static_cast<double>(samples) + shrinkage);
  std::vector<IsotonicMap> maps;
  for (int64_t l = 0; l < layers; ++l) {
    const IsotonicMap layer =
        IsotonicMap::fit(logits.select(1, l).flatten(), importance.select(1, l).flatten());
    for (int64_t h = 0; h < heads; ++h) {
      const IsotonicMap own = IsotonicMap::fit(logits.select(1, l).select(1, h).contiguous(),
                                               importance.select(1, l).select(1, h).contiguous());
      maps.push_back(IsotonicMap::blend(share, own, layer));
    }
  }
  return HeadIsotonic(layers, heads, std::move(maps));
}

at::Tensor HeadIsotonic::operator()(const at::Tensor& logits) const {
  check(logits);
  const at::Tensor z = logits.contiguous();
  at::Tensor result = at::empty_like(z);
  const auto size = static_cast<int64_t>(maps_.size());
  for (int64_t i = 0; i < z.numel(); ++i) {
    result.mutable_data_ptr<double>()[i] =
        maps_[static_cast<size_t>(i % size)](z.const_data_ptr<double>()[i]);
  }
  return result;
}

at::Tensor HeadIsotonic::order(const at::Tensor& logits) const {
  const at::Tensor importance = (*this)(logits);
  const at::Tensor z = logits.contiguous();
  const int64_t batch = z.size(0), size = layers_ * heads_;
  at::Tensor result = at::empty({batch, size}, at::kLong);
  for (int64_t b = 0; b < batch; ++b) {
    const double* const value = importance.const_data_ptr<double>() + b * size;
    const double* const logit = z.const_data_ptr<double>() + b * size;
    int64_t* const row = result.mutable_data_ptr<int64_t>() + b * size;
    std::iota(row, row + size, 0);
    std::sort(row, row + size, [&](int64_t i, int64_t j) {
      const bool first = std::isnan(logit[i]), second = std::isnan(logit[j]);
      if (first || second) return first == second ? i < j : second;
      if (value[i] != value[j]) return value[i] < value[j];
      return logit[i] != logit[j] ? logit[i] < logit[j] : i < j;
    });
  }
  return result;
}

const IsotonicMap& HeadIsotonic::map(int64_t layer, int64_t head) const {
  HEADKIT_CHECK_INDEX(layer >= 0 && layer < layers_ && head >= 0 && head < heads_, kOperation,
                      c10::str("a head of ", layers_, " layers of ", heads_), "layer ", layer,
                      " head ", head);
  return maps_[static_cast<size_t>(layer * heads_ + head)];
}

std::string HeadIsotonic::to_json() const {
  Json maps = Json::array();
  for (const IsotonicMap& map : maps_) {
    maps.push_back({{"centres", map.centres()}, {"values", map.values()}});
  }
  return Json{{"version", 1}, {"layers", layers_}, {"heads", heads_}, {"maps", std::move(maps)}}
      .dump();
}

HeadIsotonic HeadIsotonic::from_json(const std::string& text) {
  const Json json = parse_json(kOperation, text);
  const int64_t version = integer_member(kOperation, json, "version");
  HEADKIT_CHECK(version == 1, kOperation, "version 1, as this headkit writes", version);
  const Json& list = member(kOperation, json, "maps");
  HEADKIT_CHECK(list.is_array(), kOperation, "an array as \"maps\"", list.type_name());
  const auto numbers = [](const Json& map, const char* name) {
    const at::Tensor values = tensor_from_json(kOperation, member(kOperation, map, name), 1);
    const double* const data = values.const_data_ptr<double>();
    return std::vector<double>(data, data + values.numel());
  };
  std::vector<IsotonicMap> maps;
  for (const Json& map : list) maps.emplace_back(numbers(map, "centres"), numbers(map, "values"));
  return HeadIsotonic(integer_member(kOperation, json, "layers"),
                      integer_member(kOperation, json, "heads"), std::move(maps));
}

}  // namespace headkit
