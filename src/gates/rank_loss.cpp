#include "gates/rank_loss.h"

#include <ATen/ATen.h>

#include <utility>

namespace headkit {

RankLoss::RankLoss(const at::Tensor& targets, std::vector<RankGroup> groups) {
  for (RankGroup& group : groups) {
    const auto count = static_cast<int64_t>(group.columns.size());
    if (group.top < 1 || group.top >= count) continue;
    const at::Tensor columns = at::tensor(group.columns, at::kLong);
    const at::Tensor own = targets.index_select(1, columns);
    const auto [sorted, order] =
        own.sort(/*stable=*/std::optional<bool>(true), /*dim=*/1, /*descending=*/true);
    const at::Tensor places = columns.index_select(0, order.flatten()).view_as(order);
    const at::Tensor gap =
        sorted.slice(1, 0, group.top).unsqueeze(2) - sorted.slice(1, group.top).unsqueeze(1);
    const at::Tensor sum = gap.sum({1, 2}, true);
    groups_.push_back({places.slice(1, 0, group.top).contiguous(),
                       places.slice(1, group.top).contiguous(),
                       at::where(sum > 0, gap / sum.clamp_min(1e-300), at::zeros_like(gap))});
  }
}

double RankLoss::value(const at::Tensor& logits) const {
  double sum = 0;
  for (const Pairs& pairs : groups_) {
    const at::Tensor lead =
        logits.gather(1, pairs.high).unsqueeze(2) - logits.gather(1, pairs.low).unsqueeze(1);
    sum -= (pairs.weight * at::log_sigmoid(lead)).sum().item<double>();
  }
  return sum / static_cast<double>(logits.size(0));
}

at::Tensor RankLoss::gradient(const at::Tensor& logits) const {
  at::Tensor gradient = at::zeros_like(logits);
  for (const Pairs& pairs : groups_) {
    const at::Tensor lead =
        logits.gather(1, pairs.high).unsqueeze(2) - logits.gather(1, pairs.low).unsqueeze(1);
    const at::Tensor push = pairs.weight * at::sigmoid(-lead);
    gradient.scatter_add_(1, pairs.high, -push.sum(2));
    gradient.scatter_add_(1, pairs.low, push.sum(1));
  }
  return gradient;
}

}  // namespace headkit
