// Rewards of a group to advantages.
#pragma once

#include <cmath>

#include "kernels.h"

namespace FASTGRPO_ARCH {

template <typename T>
void groups(const Groups& groups, const T* rewards, T* advantages, int64_t begin, int64_t end) {
  for (int64_t g = begin; g < end; ++g) {
    const int64_t first = groups.cu_groups ? groups.cu_groups[g] : g * groups.group_size;
    const int64_t last = groups.cu_groups ? groups.cu_groups[g + 1] : first + groups.group_size;
    const double count = double(last - first);
    double sum = 0, squares = 0;
    bool equal = true;
    for (int64_t i = first; i < last; ++i) {
      sum += double(rewards[i]);
      equal &= rewards[i] == rewards[first];
    }
    if (equal) {  // also a group of one: exactly 0, where rounding would leave something for eps to blow up
      for (int64_t i = first; i < last; ++i) advantages[i] = 0;
      continue;
    }
    const double mean = sum / count;
    for (int64_t i = first; i < last; ++i) squares += (double(rewards[i]) - mean) * (double(rewards[i]) - mean);
    // r - (sum - r) / (n - 1) = (r - mean) * n / (n - 1)
    double factor = groups.leave_one_out ? count / (count - 1) : 1.0;
    if (groups.scale) factor /= std::sqrt(squares / (count - 1)) + groups.eps;
    for (int64_t i = first; i < last; ++i) advantages[i] = T((double(rewards[i]) - mean) * factor);
  }
}

}  // namespace FASTGRPO_ARCH
