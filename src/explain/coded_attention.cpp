#include "headkit/explain/coded_attention.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/base64.h"
#include "core/json.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr const char* kOperation = "code_attention";
constexpr int64_t kKept = 8;
constexpr int64_t kEntryBytes = 3;

CodedAttention code_head(const float* rows, int64_t queries, int64_t keys, const bool* valid,
                         const bool* sink) {
  CodedAttention coded;
  coded.kept_mass.resize(queries);
  coded.sink_mass.resize(queries);
  coded.received.resize(keys);
  std::vector<uint8_t> bytes(queries * kKept * kEntryBytes);
  std::vector<int64_t> order(keys);
  const int64_t kept = std::min(kKept, keys);
  int64_t counted = 0;
  for (int64_t i = 0; i < queries; ++i) {
    if (!valid[i]) continue;
    ++counted;
    const float* row = rows + i * keys;
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + kept, order.end(), [&](int64_t a, int64_t b) {
      return row[a] > row[b] || (row[a] == row[b] && a < b);
    });
    for (int64_t k = 0; k < kept; ++k) {
      const int64_t key = order[k];
      uint8_t* entry = bytes.data() + (i * kKept + k) * kEntryBytes;
      entry[0] = static_cast<uint8_t>(key & 255);
      entry[1] = static_cast<uint8_t>(key >> 8);
      entry[2] = static_cast<uint8_t>(std::lround(255 * std::clamp(row[key], 0.0f, 1.0f)));
      coded.kept_mass[i] += row[key];
    }
    for (int64_t j = 0; j < keys; ++j) {
      coded.received[j] += row[j];
      if (sink[j]) coded.sink_mass[i] += row[j];
    }
  }
  for (double& mass : coded.received) mass /= std::max<int64_t>(1, counted);
  coded.data = base64_encode(bytes.data(), bytes.size());
  return coded;
}

at::Tensor flags(const at::Tensor& given, int64_t size, bool otherwise, const char* name) {
  if (!given.defined()) return at::full({size}, otherwise, at::kBool);
  HEADKIT_CHECK(given.dim() == 1 && given.size(0) == size && given.scalar_type() == at::kBool,
                kOperation, c10::str(name, " of shape [", size, "], bool"), given.sizes(), " of ",
                given.scalar_type());
  return given.cpu().contiguous();
}

}  // namespace

std::string CodedAttention::to_json() const {
  const auto rounded = [](const std::vector<double>& values) {
    Json list = Json::array();
    for (const double value : values) {
      HEADKIT_CHECK(std::isfinite(value), kOperation, "finite numbers", value);
      list.push_back(std::round(1e4 * value) / 1e4);
    }
    return list;
  };
  return Json{{"encoding", encoding},
              {"data", data},
              {"kept_mass", rounded(kept_mass)},
              {"sink_mass", rounded(sink_mass)},
              {"received", rounded(received)},
              {"value_norm", value_norm.empty() ? Json(nullptr) : rounded(value_norm)}}
      .dump();
}

std::vector<CodedAttention> code_attention(const at::Tensor& probabilities, const at::Tensor& valid,
                                           const at::Tensor& sink) {
  HEADKIT_CHECK(probabilities.dim() == 3 && probabilities.is_floating_point(), kOperation,
                "floating-point probabilities of shape [heads, queries, keys]",
                probabilities.sizes(), " of ", probabilities.scalar_type());
  const int64_t heads = probabilities.size(0);
  const int64_t queries = probabilities.size(1);
  const int64_t keys = probabilities.size(2);
  HEADKIT_CHECK(keys <= 65536, kOperation, "at most 65536 keys", keys);
  const at::Tensor query_valid = flags(valid, queries, true, "valid");
  const at::Tensor key_sink = flags(sink, keys, false, "sink");
  const at::Tensor rows = probabilities.detach().to(at::kCPU, at::kFloat).contiguous();
  const at::Tensor shown = rows.index({at::indexing::Slice(), query_valid});
  constexpr double kRounding = 1e-4;
  HEADKIT_CHECK(((shown >= 0) & (shown <= 1 + kRounding)).all().item<bool>(), kOperation,
                "probabilities in [0, 1] for valid queries", "others");
  std::vector<CodedAttention> coded;
  for (int64_t h = 0; h < heads; ++h) {
    coded.push_back(code_head(rows.const_data_ptr<float>() + h * queries * keys, queries, keys,
                              query_valid.const_data_ptr<bool>(), key_sink.const_data_ptr<bool>()));
  }
  return coded;
}

}  // namespace headkit
