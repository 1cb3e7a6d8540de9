#include "kernels/dispatch.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <set>
#include <stdexcept>
#include <string>

namespace headkit::kernels {
namespace {

TEST(Dispatch, LevelsGoFromScalarUp) {
  ASSERT_GE(isa_count(), 1);
  EXPECT_STREQ(isa_name(0), "scalar");
  std::set<std::string> names;
  for (int i = 0; i < isa_count(); ++i) {
    names.insert(isa_name(i));
    EXPECT_STREQ(kernel_table_at(i).isa, isa_name(i));
    if (i > 0) {
      EXPECT_GE(kernel_table_at(i).vector_length, kernel_table_at(i - 1).vector_length);
    }
  }
  EXPECT_EQ(static_cast<int>(names.size()), isa_count());
}

// Run by ctest with HEADKIT_ISA unset, set to each level, and set to nonsense.
TEST(Dispatch, TakesTheLevelThatTheEnvironmentNames) {
  const char* wanted = std::getenv("HEADKIT_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    EXPECT_EQ(&kernel_table(), &kernel_table_at(isa_count() - 1));
    return;
  }
  for (int i = 0; i < isa_count(); ++i) {
    if (std::string(wanted) != isa_name(i)) continue;
    EXPECT_EQ(&kernel_table(), &kernel_table_at(i));
    EXPECT_STREQ(kernel_table().isa, wanted);
    return;
  }
  try {
    kernel_table();
    FAIL() << "HEADKIT_ISA=" << wanted << " was accepted";
  } catch (const std::runtime_error& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.rfind("[isa] expected one of scalar", 0), 0u) << message;
    EXPECT_NE(message.find(std::string("HEADKIT_ISA=") + wanted), std::string::npos) << message;
  }
}

TEST(Dispatch, ProbeCountsItsWork) {
  for (int i = 0; i < isa_count(); ++i) {
    EXPECT_EQ(kernel_table_at(i).probe(20), 2.0 * kernel_table_at(i).probe(10));
    EXPECT_GT(kernel_table_at(i).probe(1), 0.0);
  }
}

TEST(Dispatch, BfloatKernelsComeWithTheirLevelAlone) {
  for (int i = 0; i < isa_count(); ++i) {
    const KernelTable& table = kernel_table_at(i);
    ASSERT_EQ(table.bf16 != nullptr, std::string(table.isa) == "avx512_bf16") << table.isa;
    if (table.bf16 == nullptr) continue;
    EXPECT_EQ(table.bf16->probe(20), 2.0 * table.bf16->probe(10));
    EXPECT_GT(table.bf16->probe(1), 0.0);
  }
}

TEST(Dispatch, HasNoCudaTable) { EXPECT_EQ(cuda_kernel_table(), nullptr); }

}  // namespace
}  // namespace headkit::kernels
