#include "headkit/explain/image_roles.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <string>

#include "explain/image_object.h"
#include "explain/row_cursor.h"
#include "headkit/core/error.h"
#include "headkit/explain/role_sums.h"

namespace headkit {
namespace {

constexpr char kOperation[] = "image_roles";
constexpr int64_t kFarthest = 4;
constexpr int64_t kSteps = 2 * kFarthest + 1;
constexpr double kArtefactShare = 0.01;

void check_grid(const PatchGrid& grid) {
  HEADKIT_CHECK(grid.rows > 0 && grid.columns > 0 && grid.rows <= 65536 && grid.columns <= 65536,
                kOperation, "rows and columns of patches from 1 to 65536", grid.rows, " and ",
                grid.columns);
  HEADKIT_CHECK(grid.patch_size > 0 && std::isfinite(grid.patch_size), kOperation,
                "a patch_size above 0", grid.patch_size);
  const auto is_special = [&](int64_t token) {
    return token >= 0 && (token < grid.first_patch || token >= grid.first_patch + grid.patches());
  };
  HEADKIT_CHECK(grid.first_patch >= 0, kOperation, "a first_patch of at least 0", grid.first_patch);
  HEADKIT_CHECK(grid.cls == -1 || is_special(grid.cls), kOperation,
                "a CLS token that is no patch, or -1", grid.cls);
  for (const int64_t token : grid.registers) {
    HEADKIT_CHECK(is_special(token), kOperation, "registers that are no patches", token);
  }
}

std::string step_name(int64_t down, int64_t right) {
  const auto with_sign = [](int64_t n) { return (n > 0 ? "+" : "") + std::to_string(n); };
  return "(" + with_sign(down) + "," + with_sign(right) + ")";
}

class ImageRoles final : public RoleAccumulator {
 public:
  ImageRoles(const HeadLayout& layout, const PatchGrid& grid, const ImageKnowledge& known,
             const RoleMeasure& measure)
      : layout_(layout),
        grid_(grid),
        local_("image_local", "", layout),
        same_row_("same_row", "", layout),
        same_column_("same_column", "", layout),
        artefact_("artefact_sink", "", layout),
        object_(layout, grid, known.masks, measure) {
    for (int64_t down = -kFarthest; down <= kFarthest; ++down) {
      for (int64_t right = -kFarthest; right <= kFarthest; ++right) {
        steps_.emplace_back("image_offset", step_name(down, right), layout);
      }
    }
    if (known.norms.defined()) {
      HEADKIT_CHECK(
          known.norms.dim() == 2 && known.norms.size(1) >= grid.first_patch + grid.patches(),
          kOperation,
          "norms of shape [images, tokens] with at least " +
              std::to_string(grid.first_patch + grid.patches()) + " tokens",
          "shape ", known.norms.sizes());
      norms_ = known.norms.to(at::kCPU, at::kFloat).contiguous();
    }
  }

  void add(const RoleRows& rows) override {
    if (!rows.same_tokens()) return;
    const SampleAttention& attention = rows.attention;
    HEADKIT_CHECK(rows.keys() >= grid_.first_patch + grid_.patches(), kOperation,
                  "at least " + std::to_string(grid_.first_patch + grid_.patches()) +
                      " tokens in image " + std::to_string(attention.sample),
                  rows.keys());
    find_artefacts(rows);
    for (int64_t h = 0; h < rows.heads(); ++h) {
      add_patches(rows, h);
      object_.add(rows, h);
    }
  }

  void merge(const RoleAccumulator& other) override {
    const auto& from = dynamic_cast<const ImageRoles&>(other);
    local_.merge(from.local_);
    same_row_.merge(from.same_row_);
    same_column_.merge(from.same_column_);
    artefact_.merge(from.artefact_);
    for (size_t i = 0; i < steps_.size(); ++i) steps_[i].merge(from.steps_[i]);
    object_.merge(from.object_);
  }

  void finish(const RoleEnd& end, RoleTable& table) const override {
    std::vector<RoleScore> local = local_.scores(end, {});
    for (RoleScore& score : local) {
      if (!score.assessed) continue;
      score.details.emplace_back(
          "mean_distance_pixels",
          score.score * std::hypot(grid_.rows, grid_.columns) * grid_.patch_size);
    }
    add_scores(local, table);
    add_scores(best_steps(end), table);
    add_scores(same_row_.scores(end, {}), table);
    add_scores(same_column_.scores(end, {}), table);
    add_scores(artefact_.scores(end, {}, "neither registers nor norms are known"), table);
    object_.finish(end, table);
  }

 private:
  // Of each head the step with the highest score; the chance of the best is that of all steps.
  std::vector<RoleScore> best_steps(const RoleEnd& end) const {
    std::vector<RoleScore> best;
    double chance = 0;
    for (const RoleSums& step : steps_) {
      std::vector<RoleScore> scores = step.scores(end, {.permuted_keys = true}, "no such step");
      for (size_t i = 0; i < scores.size(); ++i) {
        for (const RoleNull& null : scores[i].nulls) {
          if (null.name == "best_of_n") chance = std::max(chance, null.value);
        }
        if (best.size() <= i) {
          best.push_back(std::move(scores[i]));
        } else if (scores[i].assessed && (!best[i].assessed || scores[i].score > best[i].score)) {
          best[i] = std::move(scores[i]);
        }
      }
    }
    for (RoleScore& score : best) {
      for (RoleNull& null : score.nulls) {
        if (null.name == "best_of_n") null.value = chance;
      }
      judge(score);
    }
    return best;
  }

  // Registers, and the patches with the largest norm.
  void find_artefacts(const RoleRows& rows) {
    const int64_t sample = rows.attention.sample;
    if (sample == artefact_sample_) return;
    artefact_sample_ = sample;
    artefacts_ = grid_.registers;
    if (norms_.defined()) {
      HEADKIT_CHECK(sample < norms_.size(0), kOperation,
                    "no more images than the " + std::to_string(norms_.size(0)) + " of the norms",
                    "image ", sample);
      const float* norm = norms_.const_data_ptr<float>() + sample * norms_.size(1);
      std::vector<int64_t> patches(grid_.patches());
      for (int64_t p = 0; p < grid_.patches(); ++p) patches[p] = grid_.first_patch + p;
      const auto count =
          static_cast<int64_t>(std::ceil(kArtefactShare * static_cast<double>(grid_.patches())));
      std::stable_sort(patches.begin(), patches.end(),
                       [&](int64_t a, int64_t b) { return norm[a] > norm[b]; });
      artefacts_.insert(artefacts_.end(), patches.begin(), patches.begin() + count);
    }
    for (const int64_t token : artefacts_) {
      HEADKIT_CHECK(token < rows.keys(), kOperation,
                    "registers below " + std::to_string(rows.keys()), token);
    }
  }

  void add_patches(const RoleRows& rows, int64_t h) {
    const SampleAttention& attention = rows.attention;
    const int64_t head = attention.heads[h], sample = attention.sample, layer = attention.layer;
    RoleSums::Sums& local = local_.of(sample, layer, head);
    RoleSums::Sums& in_row = same_row_.of(sample, layer, head);
    RoleSums::Sums& in_column = same_column_.of(sample, layer, head);
    RoleSums::Sums& artefact = artefact_.of(sample, layer, head);
    RoleSums::Totals& of_local = local_.totals(layer, head);
    RoleSums::Totals& of_row = same_row_.totals(layer, head);
    RoleSums::Totals& of_column = same_column_.totals(layer, head);
    RoleSums::Totals& of_artefact = artefact_.totals(layer, head);
    const double diagonal = std::hypot(grid_.rows, grid_.columns);
    RowCursor row(rows, h);
    for (int64_t p = 0; p < grid_.patches(); ++p) {
      row.move_to(grid_.first_patch + p);
      if (!row.valid) continue;
      if (!artefacts_.empty()) {
        double mass = 0, seen = 0;
        for (const int64_t token : artefacts_) {
          mass += row.weights[token];
          seen += row.allowed[token];
        }
        artefact.score += mass;
        artefact.rows += 1;
        of_artefact.uniform += seen / row.keys_allowed;
      }
      const float* weights = row.weights + grid_.first_patch;
      const bool* allowed = row.allowed + grid_.first_patch;
      const int64_t down = p / grid_.columns, right = p % grid_.columns;
      double mass = 0, seen = 0, distance = 0, far = 0, row_mass = 0, column_mass = 0;
      double row_seen = 0, column_seen = 0;
      float largest = -1;
      for (int64_t q = 0; q < grid_.patches(); ++q) {
        if (!allowed[q]) continue;
        const int64_t q_down = q / grid_.columns, q_right = q % grid_.columns;
        const double away = std::hypot(q_down - down, q_right - right);
        mass += weights[q];
        seen += 1;
        distance += weights[q] * away;
        far += away;
        largest = std::max(largest, weights[q]);
        if (q == p) continue;
        row_mass += q_down == down ? weights[q] : 0;
        column_mass += q_right == right ? weights[q] : 0;
        row_seen += q_down == down;
        column_seen += q_right == right;
      }
      for (RoleSums::Totals* totals : {&of_local, &of_row, &of_column}) {
        totals->seen += 1;
        totals->excluded += 1 - mass;
      }
      if (mass < kLeastMass) {
        of_local.dropped += 1;
      } else {
        local.score += distance / mass / diagonal;
        local.rows += 1;
        of_local.uniform += far / seen / diagonal;
        add_steps(rows, h, p, weights, allowed, largest, seen);
      }
      const double own = allowed[p] ? weights[p] : 0;
      if (mass - own < kLeastMass) {
        of_row.dropped += 1;
        of_column.dropped += 1;
      } else {
        const double others = seen - allowed[p];
        in_row.score += row_mass / (mass - own);
        in_row.rows += 1;
        of_row.uniform += row_seen / others;
        in_column.score += column_mass / (mass - own);
        in_column.rows += 1;
        of_column.uniform += column_seen / others;
      }
    }
  }

  void add_steps(const RoleRows& rows, int64_t h, int64_t p, const float* weights,
                 const bool* allowed, float largest, double seen) {
    const SampleAttention& attention = rows.attention;
    const int64_t head = attention.heads[h];
    const int64_t down = p / grid_.columns, right = p % grid_.columns;
    double ties = 0;
    for (int64_t q = 0; q < grid_.patches(); ++q) ties += allowed[q] && weights[q] == largest;
    for (int64_t i = 0; i < kSteps * kSteps; ++i) {
      const int64_t q_down = down + i / kSteps - kFarthest,
                    q_right = right + i % kSteps - kFarthest;
      if (q_down < 0 || q_down >= grid_.rows || q_right < 0 || q_right >= grid_.columns) continue;
      const int64_t q = q_down * grid_.columns + q_right;
      if (!allowed[q]) continue;
      RoleSums::Sums& sums = steps_[i].of(attention.sample, attention.layer, head);
      RoleSums::Totals& totals = steps_[i].totals(attention.layer, head);
      sums.score += weights[q] == largest ? 1 / ties : 0;
      sums.rows += 1;
      totals.uniform += 1 / seen;
      totals.variance += (1 - 1 / seen) / seen;
    }
  }

  HeadLayout layout_;
  PatchGrid grid_;
  RoleSums local_, same_row_, same_column_, artefact_;
  std::vector<RoleSums> steps_;  // by step down, then right
  ImageObject object_;
  at::Tensor norms_;
  int64_t artefact_sample_ = -1;
  std::vector<int64_t> artefacts_;  // tokens
};

}  // namespace

std::unique_ptr<RoleAccumulator> image_roles(const HeadLayout& layout, const PatchGrid& grid,
                                             const ImageKnowledge& known,
                                             const RoleMeasure& measure) {
  check_grid(grid);
  return std::make_unique<ImageRoles>(layout, grid, known, measure);
}

at::Tensor final_token_norms(GatedModel& model, const DataSource& data) {
  const c10::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  const int64_t layers = model.layout().layers;
  std::vector<at::Tensor> norms;
  data.for_each([&](const Batch& batch) {
    if (batch_size(batch) == 0) return;
    const ModelState state = model.run(model.embed(batch), 0, layers, {});
    norms.push_back(state.hidden.detach().to(at::kFloat).norm(2, {-1}).to(at::kCPU));
    HEADKIT_CHECK(norms.back().size(1) == norms.front().size(1), kOperation,
                  "as many tokens in every example", norms.front().size(1), " and ",
                  norms.back().size(1));
  });
  HEADKIT_CHECK(!norms.empty(), kOperation, "data with at least one example", "none");
  return at::cat(norms);
}

}  // namespace headkit
