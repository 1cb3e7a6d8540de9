#include "headkit/scorers/stability.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "core/json.h"
#include "headkit/core/error.h"
#include "scorers/resampling.h"

namespace headkit {
namespace {

constexpr auto kOperation = "stability";

// Masks as raters who put each head into one of two categories.
double fleiss(const at::Tensor& kept, double masks) {
  const at::Tensor pairs = kept * (kept - 1) + (masks - kept) * (masks - kept - 1);
  const double observed = pairs.mean().item<double>() / (masks * (masks - 1));
  const double open = kept.mean().item<double>() / masks;
  const double expected = open * open + (1 - open) * (1 - open);
  return (observed - expected) / (1 - expected);
}

// NaN unless all rows have the same sum.
double mean_kuncheva(const at::Tensor& rows) {
  const at::Tensor sizes = rows.sum(1);
  if (!sizes.eq(sizes[0]).all().item<bool>()) return std::numeric_limits<double>::quiet_NaN();
  const double size = sizes[0].item<double>();
  const double chance = size / static_cast<double>(rows.size(1));
  const auto masks = static_cast<double>(rows.size(0));
  const double common = at::mm(rows, rows.t()).sum().item<double>() - masks * size;
  const double overlap = common / (masks * (masks - 1)) / size;
  return (overlap - chance) / (1 - chance);
}

}  // namespace

Stability stability(const std::vector<HeadMask>& masks, double confidence) {
  HEADKIT_CHECK(masks.size() >= 2, kOperation, "at least two masks", masks.size());
  HEADKIT_CHECK(confidence > 0 && confidence < 1, kOperation, "a confidence level in (0, 1)",
                confidence);
  std::vector<at::Tensor> flat;
  for (const HeadMask& mask : masks) {
    HEADKIT_CHECK(mask.layers() == masks[0].layers() && mask.heads() == masks[0].heads(),
                  kOperation, "masks of one model", "[", masks[0].layers(), ", ", masks[0].heads(),
                  "] and [", mask.layers(), ", ", mask.heads(), "]");
    flat.push_back(mask.keep().to(at::kDouble).flatten());
  }
  const at::Tensor rows = at::stack(flat);
  const auto count = static_cast<double>(rows.size(0)), heads = static_cast<double>(rows.size(1));

  Stability result;
  result.masks = rows.size(0);
  result.confidence = confidence;
  result.mean_kept = rows.sum(1).mean().item<double>();
  const at::Tensor frequency = rows.mean(0);
  result.frequency = frequency.reshape({masks[0].layers(), masks[0].heads()});
  const double open = result.mean_kept / heads;
  const double chance = open * (1 - open);
  HEADKIT_CHECK(chance > 0, kOperation, "masks that are not all empty and not all full",
                result.mean_kept, " heads in each");
  const double spread = (frequency * (1 - frequency)).mean().item<double>() * count / (count - 1);
  result.nogueira = 1 - spread / chance;
  const at::Tensor sizes = rows.sum(1) / heads;
  const at::Tensor each = ((rows * frequency).mean(1) - sizes * open +
                           0.5 * result.nogueira * (2 * sizes * open - sizes - open + 1)) /
                          chance;
  result.variance = 4 / (count * count) * (each - each.mean()).square().sum().item<double>();
  const double width = normal_quantile(0.5 + 0.5 * confidence) * std::sqrt(result.variance);
  result.lower = result.nogueira - width;
  result.upper = result.nogueira + width;
  result.fleiss_kappa = fleiss(rows.sum(0), count);
  result.mean_kuncheva = mean_kuncheva(rows);
  return result;
}

std::string Stability::to_json() const {
  Json json{{"masks", masks},           {"mean_kept", mean_kept},
            {"nogueira", nogueira},     {"variance", variance},
            {"lower", lower},           {"upper", upper},
            {"confidence", confidence}, {"fleiss_kappa", fleiss_kappa}};
  json["mean_kuncheva"] = std::isnan(mean_kuncheva) ? Json(nullptr) : Json(mean_kuncheva);
  json["frequency"] = tensor_to_json(kOperation, frequency);
  return json.dump();
}

}  // namespace headkit
