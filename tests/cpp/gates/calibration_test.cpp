#include "headkit/gates/calibration.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <cmath>

#include "headkit/explain/decision_record.h"
#include "headkit/gates/calibrated_policy.h"
#include "headkit/gates/conformal.h"
#include "headkit/gates/escalation.h"
#include "headkit/gates/linear_gate.h"
#include "headkit/gates/mask_policy.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{3, 4, 2, 5, 6};
const std::vector<double> kGrid{0, 0.2, 0.4, 0.6, 0.8, 1};

std::shared_ptr<Escalation> escalation() {
  const HeadMask low(at::tensor({1, 1, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0}, at::kLong).reshape({3, 4}));
  const HeadMask high(at::tensor({1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1}, at::kLong).reshape({3, 4}));
  return std::make_shared<Escalation>(EscalationSettings{.ladder = ladder_of_masks({low, high})});
}

std::shared_ptr<LinearGate> linear_gate() {
  at::manual_seed(3);
  LinearGateSettings settings;
  settings.weight = at::randn({3, 4, 5}, at::kDouble);
  settings.reference = at::zeros({5}, at::kDouble);
  settings.static_logits = at::randn({3, 4}, at::kDouble);
  return std::make_shared<LinearGate>(settings);
}

// Runs nothing: calibration must refuse before it gets here.
class UnrunModel final : public GatedModel {
 public:
  HeadLayout layout() const override { return kLayout; }
  HeadMask heads() const override { return HeadMask::all(3, 4); }
  ModelState embed(const Batch& batch) override {
    ModelState state;
    state.hidden = batch.at("x");
    return state;
  }
  ModelState run(const ModelState&, int64_t, int64_t, const GateSet&, Taps*) override {
    throw std::logic_error("the model was run");
  }
  at::Tensor head(const ModelState&) override { throw std::logic_error("the model was run"); }
  AttentionWeights attention(int64_t) override { return {}; }
  void replace_attention(int64_t, const AttentionWeights&, const std::vector<int64_t>&) override {}
  std::vector<std::pair<std::string, at::Tensor>> parameters() override { return {}; }
};

class CalibrationTest : public ::testing::Test {
 protected:
  BatchList data(int64_t examples, uint64_t seed) const {
    std::vector<Batch> batches;
    for (int64_t first = 0; first < examples; first += 50) {
      batches.push_back(testing::random_toy_batch(kLayout, std::min<int64_t>(50, examples - first),
                                                  6, 3, seed + first));
    }
    return BatchList(batches);
  }
  std::shared_ptr<testing::ToyModel> model_ = testing::random_toy_model(kLayout, 3, 7);
};

TEST_F(CalibrationTest, TraceIsWhatRunsOfTheWholeModelLose) {
  const BatchList examples = data(80, 1);
  for (const std::shared_ptr<AdjustablePolicy>& policy :
       std::vector<std::shared_ptr<AdjustablePolicy>>{escalation(), linear_gate()}) {
    const PolicyTrace trace =
        trace_policy(*model_, *policy, examples, make_output_loss("flip"), {.grid = kGrid});
    const PolicyTrace kl =
        trace_policy(*model_, *policy, examples, make_output_loss("kl", 0.2), {.grid = kGrid});
    const PolicyTrace task =
        trace_policy(*model_, *policy, examples, make_output_loss("task", 5), {.grid = kGrid});
    int64_t row = 0, changed = 0;
    examples.for_each([&](const Batch& batch) {
      const at::Tensor full = run_policy(*model_, batch, *policy->at(1)).output;
      const at::Tensor open = (*model_)(batch);
      const at::Tensor labels = batch.at("labels").unsqueeze(1);
      const int64_t count = full.size(0);
      for (size_t j = 0; j < kGrid.size(); ++j) {
        const PolicyRun run = run_policy(*model_, batch, *policy->at(kGrid[j]));
        const auto rows = [&](const at::Tensor& all) {
          return all.select(1, static_cast<int64_t>(j)).slice(0, row, row + count);
        };
        const at::Tensor flips = (run.output.argmax(1) != full.argmax(1)).to(at::kDouble);
        EXPECT_TRUE(at::equal(rows(trace.losses), flips)) << policy->name() << kGrid[j];
        changed += flips.sum().item<int64_t>();
        const at::Tensor p = full.softmax(1);
        const at::Tensor divergence =
            (p * (full.log_softmax(1) - run.output.log_softmax(1))).sum(1).clamp(0, 0.2);
        EXPECT_TRUE(at::allclose(rows(kl.losses), divergence, 1e-9, 1e-12));
        const at::Tensor rise = (full.log_softmax(1) - run.output.log_softmax(1))
                                    .gather(1, labels)
                                    .squeeze(1)
                                    .clamp(0, 5);
        EXPECT_TRUE(at::allclose(rows(task.losses), rise, 1e-9, 1e-12));
        EXPECT_TRUE(at::equal(rows(trace.heads_run), run.heads_run.to(at::kDouble)));
      }
      EXPECT_TRUE(at::equal(trace.drift.slice(0, row, row + count),
                            (open.argmax(1) != full.argmax(1)).to(at::kDouble)));
      EXPECT_TRUE(
          at::equal(trace.tokens.slice(0, row, row + count), batch.at("attention_mask").sum(1)));
      row += count;
    });
    EXPECT_EQ(row, trace.losses.size(0));
    EXPECT_GT(changed, 10) << "the problem is too easy to test anything";
  }
}

TEST_F(CalibrationTest, TakesTheWorstBucketAndKeepsThePromiseInEach) {
  const BatchList examples = data(400, 2);
  const PolicyTrace trace =
      trace_policy(*model_, *escalation(), examples, make_output_loss("flip"), {});
  EXPECT_EQ(trace.grid.size(), 17u);
  const Calibration result = calibrate(trace, {.risk = 0.1, .length_edges = {2, 4}});
  ASSERT_EQ(result.buckets.size(), 3u);
  double largest = 0;
  int64_t samples = 0;
  const at::Tensor grid = at::tensor(trace.grid, at::kDouble);
  for (const CalibrationBucket& bucket : result.buckets) {
    const at::Tensor inside = (trace.tokens >= bucket.min_tokens)
                                  .logical_and(trace.tokens <= bucket.max_tokens.value_or(99));
    const at::Tensor losses = trace.losses.index_select(0, inside.nonzero().flatten());
    EXPECT_EQ(bucket.samples, losses.size(0));
    const ConformalResult expected = conformal_risk_control(losses, grid, {.risk = 0.1});
    EXPECT_EQ(bucket.lambda, expected.lambda);
    EXPECT_LE(bucket.evidence, 0.1 + 1e-12);
    EXPECT_EQ(result.lambda_of(bucket.min_tokens), bucket.lambda);
    EXPECT_EQ(result.lambda_of(bucket.min_tokens, 8), result.lambda);
    largest = std::max(largest, bucket.lambda);
    samples += bucket.samples;
  }
  EXPECT_EQ(result.lambda, largest);
  EXPECT_EQ(samples, 400);
  EXPECT_EQ(result.mean_heads.back(), trace.heads_run.select(1, 16).mean().item<double>());
  const Calibration tested = calibrate(trace, {.method = "ltt", .risk = 0.1, .length_buckets = 1});
  EXPECT_EQ(tested.buckets.size(), 1u);
  EXPECT_LE(tested.buckets[0].evidence, 0.1);
}

TEST_F(CalibrationTest, DividesByLengthIntoEqualPartsWhereNoEdgesAreGiven) {
  PolicyTrace trace;
  trace.grid = {0, 1};
  trace.losses = at::zeros({300, 2}, at::kDouble);
  trace.heads_run = trace.flops = trace.losses;
  trace.drift = at::zeros({300}, at::kDouble);
  trace.tokens = at::arange(300, at::kLong).flip(0) + 1;
  trace.task = at::zeros({300}, at::kLong);
  const Calibration thirds = calibrate(trace, {});
  ASSERT_EQ(thirds.buckets.size(), 3u);
  for (const CalibrationBucket& bucket : thirds.buckets) EXPECT_EQ(bucket.samples, 100);
  trace.tokens.fill_(7);
  EXPECT_EQ(calibrate(trace, {}).buckets.size(), 1u);
  trace.task.slice(0, 0, 150).fill_(4);
  EXPECT_EQ(calibrate(trace, {}).buckets.size(), 2u);
  EXPECT_EQ(calibrate(trace, {}).buckets[1].task, 4);
}

TEST_F(CalibrationTest, RefusesTooFewExamplesBeforeTheModelRuns) {
  UnrunModel model;
  const auto policy = escalation();
  const auto refusal = [&](int64_t examples, const CalibrationOptions& options) {
    try {
      calibrate(model, *policy, BatchList({{{"x", at::zeros({examples, 4, 5})}}}),
                make_output_loss("flip"), options);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    } catch (const std::logic_error&) {
      return std::string("ran");
    }
    return std::string();
  };
  EXPECT_EQ(refusal(19, {.risk = 0.05}), "ran");
  EXPECT_NE(refusal(18, {.risk = 0.05}).find("at least 19"), std::string::npos);
  EXPECT_NE(refusal(18, {.risk = 0.05}).find("found 18"), std::string::npos);
  EXPECT_NE(refusal(40, {.risk = 0.05, .length_edges = {2}}).find("38 in all"), std::string::npos);
  EXPECT_NE(refusal(21, {.method = "ltt", .risk = 0.1}).find("at least 22"), std::string::npos);
  EXPECT_NE(refusal(50, {.method = "guess"}).find("crc, ltt"), std::string::npos);
  EXPECT_NE(refusal(50, {.risk = 0}).find("risk"), std::string::npos);
  EXPECT_THROW(calibrate(model, *policy, BatchList({}), make_output_loss("flip")),
               std::invalid_argument);
  EXPECT_THROW(calibrate(model, *policy, BatchList({{{"x", at::zeros({50, 4, 5})}}}),
                         make_output_loss("flip"), {}, {.grid = {0, 0.5}}),
               std::invalid_argument);
}

TEST_F(CalibrationTest, KnowsWhatItWasMadeOf) {
  const BatchList examples = data(60, 4), others = data(60, 5);
  const auto policy = escalation();
  const Calibration made = calibrate(*model_, *policy, examples, make_output_loss("flip"),
                                     {.risk = 0.2, .length_buckets = 2}, {.grid = kGrid});
  EXPECT_EQ(Calibration::from_json(made.to_json()), made);
  EXPECT_EQ(Calibration::from_json(made.to_json()).id(), made.id());
  made.check_model(*model_);
  made.check_data(examples);
  made.check_policy(*policy);
  made.check_policy(dynamic_cast<const AdjustablePolicy&>(*policy->at(0.9)));
  EXPECT_THROW(made.check_model(*testing::random_toy_model(kLayout, 3, 8)), std::invalid_argument);
  EXPECT_THROW(made.check_data(others), std::invalid_argument);
  EXPECT_THROW(made.check_policy(*linear_gate()), std::invalid_argument);
  EXPECT_THROW(Calibration::from_json("{}"), std::invalid_argument);
  EXPECT_EQ(made.at_least(0), made.lambda);
  EXPECT_EQ(made.at_least(1), 1);
  for (const double wanted : {0.05, 0.2, 0.41, 0.79}) {
    const double got = made.at_least(wanted);
    EXPECT_GE(got, std::max(wanted, made.lambda));
    EXPECT_NE(std::find(kGrid.begin(), kGrid.end(), got), kGrid.end());
  }
}

TEST_F(CalibrationTest, PolicyStaysAboveItsFloorAndTellsItsPromise) {
  const BatchList examples = data(60, 4);
  const Batch batch = testing::random_toy_batch(kLayout, 10, 6, 3, 9);
  for (const std::shared_ptr<AdjustablePolicy>& policy :
       std::vector<std::shared_ptr<AdjustablePolicy>>{escalation(), linear_gate()}) {
    Calibration made = calibrate(*model_, *policy, examples, make_output_loss("flip"),
                                 {.risk = 0.2, .length_buckets = 1}, {.grid = kGrid});
    made.lambda = 0.6;
    const auto calibrated = std::make_shared<CalibratedPolicy>(policy, made);
    EXPECT_EQ(calibrated->lambda(), 0.6);
    const PolicyRun run = run_policy(*model_, batch, *calibrated, {.record = true});
    const PolicyRun plain = run_policy(*model_, batch, *policy->at(0.6));
    EXPECT_TRUE(at::equal(run.output, plain.output));
    for (const DecisionRecord& record : run.records) {
      EXPECT_EQ(record.calibration, made.id());
      EXPECT_EQ(record.risk_bound, 0.2);
      EXPECT_EQ(record.lambda, 0.6);
    }
    const auto lower = std::dynamic_pointer_cast<CalibratedPolicy>(calibrated->at(0.1));
    EXPECT_EQ(lower->lambda(), 0.6);
    const auto higher = std::dynamic_pointer_cast<CalibratedPolicy>(calibrated->at(0.61));
    EXPECT_EQ(higher->lambda(), 0.8);
    EXPECT_TRUE(at::equal(calibrated->sweep(*model_, batch, {0.0})[0].heads_run, plain.heads_run));
    const auto again = policy_from_json(higher->to_json());
    EXPECT_EQ(again->to_json(), higher->to_json());
    EXPECT_TRUE(at::equal(run_policy(*model_, batch, *again).output,
                          run_policy(*model_, batch, *policy->at(0.8)).output));
    made.policy[0] = made.policy[0] == 'a' ? 'b' : 'a';
    EXPECT_THROW(CalibratedPolicy(policy, made), std::invalid_argument);
    EXPECT_THROW(CalibratedPolicy(calibrated, made), std::invalid_argument);
  }
}

// Over random splits the mean loss of the part that was not calibrated on is at most alpha.
TEST_F(CalibrationTest, KeepsThePromiseOverRandomSplits) {
  const PolicyTrace trace = trace_policy(*model_, *escalation(), data(400, 11),
                                         make_output_loss("flip"), {.grid = kGrid});
  const double alpha = 0.1;
  const at::Generator generator = at::detail::createCPUGenerator(1);
  double sum = 0, squares = 0;
  constexpr int64_t kSplits = 100;
  for (int64_t i = 0; i < kSplits; ++i) {
    const at::Tensor order = at::randperm(400, generator, at::kLong);
    const Calibration made =
        calibrate(trace.select(order.slice(0, 0, 100)), {.risk = alpha, .length_buckets = 1});
    const auto place = std::find(kGrid.begin(), kGrid.end(), made.lambda) - kGrid.begin();
    const double loss =
        trace.losses.index_select(0, order.slice(0, 100)).select(1, place).mean().item<double>();
    sum += loss;
    squares += loss * loss;
  }
  const double mean = sum / kSplits;
  EXPECT_GT(mean, 0) << "the problem is too easy to test anything";
  EXPECT_LE(mean, alpha + 4 * std::sqrt((squares / kSplits - mean * mean) / kSplits));
}

// Losses that are not monotone in lambda: each grid value has the same risk .2 on its own. Without
// the envelope the smallest empirical mean of many is taken for the risk.
TEST(ConformalEnvelope, PlainConformalRiskControlBreaksItsPromiseWithoutIt) {
  constexpr int64_t kReplications = 200, kSamples = 49, kPoints = 300;
  const double risk = 0.2, alpha = 0.1;
  const at::Tensor grid = at::arange(kPoints + 1, at::kDouble) / kPoints;
  const at::Generator generator = at::detail::createCPUGenerator(4);
  double with = 0, without = 0;
  for (int64_t i = 0; i < kReplications; ++i) {
    at::Tensor losses =
        (at::rand({kSamples, kPoints + 1}, generator, at::kDouble) < risk).to(at::kDouble);
    losses.select(1, kPoints).zero_();
    with += conformal_risk_control(losses, grid, {.risk = alpha}).lambda < 1 ? risk : 0;
    const at::Tensor corrected = (losses.sum(0) + 1) / (kSamples + 1);
    const int64_t first = (corrected <= alpha).nonzero()[0].item<int64_t>();
    without += first < kPoints ? risk : 0;
  }
  EXPECT_LE(with / kReplications, alpha);
  EXPECT_GT(without / kReplications, 1.5 * alpha);
}

// The theorem from both sides through `calibrate`: losses with a kink at a uniform difficulty.
TEST(CalibrationTheorem, MeanRiskLiesBetweenTheBounds) {
  constexpr int64_t kReplications = 1000, kSamples = 60, kSteps = 128;
  const double alpha = 0.15;
  std::vector<double> values;
  for (int64_t j = 0; j <= kSteps; ++j) values.push_back(static_cast<double>(j) / kSteps);
  const at::Tensor grid = at::tensor(values, at::kDouble);
  const at::Generator generator = at::detail::createCPUGenerator(5);
  PolicyTrace trace;
  trace.grid = values;
  trace.heads_run = trace.flops = at::zeros({kSamples, kSteps + 1}, at::kDouble);
  trace.drift = at::zeros({kSamples}, at::kDouble);
  trace.tokens = trace.task = at::zeros({kSamples}, at::kLong);
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < kReplications; ++i) {
    const at::Tensor difficulty = at::rand({kSamples, 1}, generator, at::kDouble);
    trace.losses = (difficulty > grid.unsqueeze(0)).to(at::kDouble);
    const double loss = 1 - calibrate(trace, {.risk = alpha}).lambda;
    sum += loss;
    squares += loss * loss;
  }
  const double mean = sum / kReplications;
  const double error = 4 * std::sqrt((squares / kReplications - mean * mean) / kReplications);
  EXPECT_LE(mean, alpha + error);
  EXPECT_GE(mean, alpha - 2.0 / (kSamples + 1) - 1.0 / kSteps - error);
}

TEST(OutputLossTest, CountsWhatIsNotFiniteAsTheBound) {
  const at::Tensor full = at::tensor({1.0, 0.0, 0.0, 1.0}, at::kDouble).reshape({2, 2});
  at::Tensor gated = full.clone();
  gated[1][0] = NAN;
  for (const std::string& name : output_loss_names()) {
    const OutputLoss loss = make_output_loss(name);
    const at::Tensor lost = loss(gated, full, {{"labels", at::zeros({2}, at::kLong)}});
    EXPECT_NEAR(lost[0].item<double>(), 0, 1e-12) << name;
    EXPECT_EQ(lost[1].item<double>(), loss.bound) << name;
    EXPECT_THROW(loss(full, gated, {{"labels", at::zeros({2}, at::kLong)}}), std::invalid_argument);
  }
  EXPECT_THROW(make_output_loss("accuracy"), std::invalid_argument);
  EXPECT_THROW(make_output_loss("flip", 2), std::invalid_argument);
  EXPECT_THROW(make_output_loss("kl", 0), std::invalid_argument);
  EXPECT_THROW(make_output_loss("task", 1, kl_to_dense()), std::invalid_argument);
}

TEST(OutputLossTest, TakesTheShareOfCountedTokens) {
  const at::Tensor full = at::tensor({1.0, -1.0, 1.0, -1.0}, at::kDouble).reshape({1, 4, 1});
  const at::Tensor gated = at::tensor({-1.0, -1.0, 1.0, 1.0}, at::kDouble).reshape({1, 4, 1});
  const at::Tensor mask = at::tensor({1, 1, 0, 0}, at::kLong).reshape({1, 4});
  const OutputLoss loss = make_output_loss("flip");
  EXPECT_EQ(loss(gated, full, {{"attention_mask", mask}})[0].item<double>(), 0.5);
  EXPECT_EQ(loss(gated, full, {})[0].item<double>(), 0.5);
  EXPECT_EQ(loss(gated, full, {{"attention_mask", at::ones_like(mask)}})[0].item<double>(), 0.5);
}

}  // namespace
}  // namespace headkit
