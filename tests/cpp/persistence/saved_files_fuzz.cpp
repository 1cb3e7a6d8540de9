// Damaged files: safetensors, headkit.json, policies, calibrations, scores, masks, gates, ladders
// and records. Each must be read or refused with an exception, within a second, and without taking
// more memory than a small multiple of its size.
//
//     saved_files_fuzz [runs] [first seed]
#include <ATen/ATen.h>
#include <malloc.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <new>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "headkit/core/gate_set.h"
#include "headkit/core/head_mask.h"
#include "headkit/core/head_scores.h"
#include "headkit/explain/decision_record.h"
#include "headkit/gates/calibrated_policy.h"
#include "headkit/gates/calibration.h"
#include "headkit/gates/escalation.h"
#include "headkit/gates/ladder.h"
#include "headkit/gates/linear_gate.h"
#include "headkit/gates/run_policy.h"
#include "headkit/persistence/model_folder.h"
#include "headkit/persistence/safetensors.h"
#include "support/damage.h"
#include "support/scratch_folder.h"
#include "support/toy_model.h"

namespace {

std::atomic<int64_t> taken{0}, most_taken{0};

void note(int64_t now) {
  if (now > most_taken) most_taken = now;
}

void* counted(size_t size) {
  void* const made = std::malloc(size == 0 ? 1 : size);
  if (made == nullptr) throw std::bad_alloc();
  note(taken += static_cast<int64_t>(malloc_usable_size(made)));
  return made;
}

void uncounted(void* made) noexcept {
  if (made != nullptr) taken -= static_cast<int64_t>(malloc_usable_size(made));
  std::free(made);
}

}  // namespace

void* operator new(size_t size) { return counted(size); }
void* operator new[](size_t size) { return counted(size); }
void operator delete(void* made) noexcept { uncounted(made); }
void operator delete[](void* made) noexcept { uncounted(made); }
void operator delete(void* made, size_t) noexcept { uncounted(made); }
void operator delete[](void* made, size_t) noexcept { uncounted(made); }

// Where tensors come from. What they free is not seen, so that each counts by itself.
extern "C" int posix_memalign(void** made, size_t alignment, size_t size) noexcept {
  note(taken + static_cast<int64_t>(size));
  *made = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  return *made == nullptr ? ENOMEM : 0;
}

namespace headkit {
namespace {

constexpr HeadLayout kLayout{3, 4, 2, 5, 6};
constexpr double kSeconds = 1;
// A JSON number of two characters becomes a node of 16 bytes, and both live in a vector that grows
// by doubling; the constant is for messages and empty containers.
constexpr int64_t kTimes = 64, kBeside = 1 << 20;

struct Kind {
  std::string name;
  std::string whole;
  bool json;
  std::function<void(const std::string&)> read;
};

std::string all_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

HeadMask some_mask() {
  return HeadMask(at::tensor({1, 1, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0}, at::kLong).reshape({3, 4}));
}

std::vector<Kind> all_kinds(const testing::ScratchFolder& scratch) {
  at::manual_seed(0);
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const at::Tensor dropped = at::randn({3, 4, 5}, at::kDouble);
  const Batch batch = testing::random_toy_batch(kLayout, 40, 6, 3, 2);

  GateSet gates = GateSet::from_mask(some_mask());
  gates.dropped_output = dropped;
  HeadScores scores;
  scores.values = at::randn({3, 4}, at::kDouble);
  scores.metric = "ablation";
  scores.settings = R"({"replacement": "zero"})";
  LinearGateSettings settings;
  settings.weight = at::randn({3, 4, 5}, at::kDouble);
  settings.reference = at::zeros({5}, at::kDouble);
  settings.static_logits = at::randn({3, 4}, at::kDouble);
  settings.dropped_output = dropped;
  const LinearGate gate(settings);
  const auto escalation = std::make_shared<Escalation>(EscalationSettings{
      .ladder = ladder_of_masks({some_mask(), HeadMask::all(3, 4)}, dropped), .threshold = 0.5});
  const Calibration calibration =
      calibrate(*model, *escalation, BatchList({batch}), make_output_loss("flip"),
                {.risk = 0.2, .length_buckets = 1});
  const CalibratedPolicy calibrated(escalation, calibration);
  const PolicyRun run = run_policy(*model, batch, gate, {.record = true});
  std::string records;
  for (size_t i = 0; i < 3; ++i) records += run.records.at(i).to_json() + "\n";

  ModelFolder folder = describe_model(*model);
  folder.policy = gate.to_json();
  folder.gates = gates;
  const std::string saved = scratch / "model";
  write_model_folder(saved, folder);
  const std::string tensors = scratch / "some.safetensors";
  write_safetensors(tensors, {{"a", at::randn({2, 3})}, {"b", at::ones({4}, at::kBool)}},
                    {{"made by", "headkit"}});

  const auto policy = [](const std::string& text) { policy_from_json(text); };
  return {
      {"safetensors", all_of(tensors), false,
       [](const std::string& bytes) {
         parse_safetensors(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), "fuzz");
       }},
      {"headkit.json", all_of(saved + "/headkit.json"), true,
       [saved](const std::string& text) {
         std::ofstream(saved + "/headkit.json", std::ios::binary) << text;
         read_model_folder(saved);
       }},
      {"linear gate", gate.to_json(), true, policy},
      {"escalation", escalation->to_json(), true, policy},
      {"calibrated policy", calibrated.to_json(), true, policy},
      {"calibration", calibration.to_json(), true,
       [](const std::string& text) { Calibration::from_json(text); }},
      {"scores", scores.to_json(), true,
       [](const std::string& text) { HeadScores::from_json(text); }},
      {"mask", some_mask().to_json(), true,
       [](const std::string& text) { HeadMask::from_json(text); }},
      {"gates", gates.to_json(), true, [](const std::string& text) { GateSet::from_json(text); }},
      {"ladder", escalation->settings().ladder.to_json(), true,
       [](const std::string& text) { Ladder::from_json(text); }},
      {"records", records, false, [](const std::string& text) { read_decision_records(text); }},
  };
}

enum class Found { kRead, kRefused, kWrong };

Found run(const Kind& kind, const std::string& text, uint32_t seed) {
  const int64_t before = taken;
  most_taken = before;
  const auto start = std::chrono::steady_clock::now();
  bool read = true;
  try {
    kind.read(text);
  } catch (const std::bad_alloc&) {
    std::cerr << "seed " << seed << ": " << kind.name << " took all memory\n";
    return Found::kWrong;
  } catch (const std::exception&) {
    read = false;
  }
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
  const int64_t most = most_taken - before;
  if (spent.count() > kSeconds) {
    std::cerr << "seed " << seed << ": " << kind.name << " took " << spent.count() << " s\n";
    return Found::kWrong;
  }
  if (most > kTimes * static_cast<int64_t>(text.size()) + kBeside) {
    std::cerr << "seed " << seed << ": " << kind.name << " of " << text.size() << " bytes took "
              << most << " bytes\n";
    return Found::kWrong;
  }
  return read ? Found::kRead : Found::kRefused;
}

}  // namespace
}  // namespace headkit

int main(int argc, char** argv) {
  using namespace headkit;
  const int64_t runs = argc > 1 ? std::atoll(argv[1]) : 1000;
  const auto first = static_cast<uint32_t>(argc > 2 ? std::atoll(argv[2]) : 1);
  const testing::ScratchFolder scratch;
  const std::vector<Kind> kinds = all_kinds(scratch);
  for (const Kind& kind : kinds) {
    if (run(kind, kind.whole, 0) == Found::kRead) continue;
    std::cerr << kind.name << " is not read as it was written\n";
    return 1;
  }
  int64_t read = 0;
  for (int64_t i = 0; i < runs; ++i) {
    const auto seed = first + static_cast<uint32_t>(i);
    testing::Damage damage(seed);
    const Kind& kind = kinds[damage.below(static_cast<int64_t>(kinds.size()))];
    const std::string text = kind.json && damage.chance(0.6) ? damage.with_other_values(kind.whole)
                                                             : damage.with_other_bytes(kind.whole);
    const Found found = run(kind, text, seed);
    if (found == Found::kWrong) return 1;
    read += found == Found::kRead ? 1 : 0;
  }
  std::cout << runs << " files, " << read << " of them read\n";
  // All refused, or all read, would test nothing.
  return runs < 100 || (read > 0 && read < runs) ? 0 : 1;
}
