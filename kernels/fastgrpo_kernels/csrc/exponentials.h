// Logits become exponentials relative to an offset of their row, which is known beforehand, and are added up.
#pragma once

#include "kernels.h"
#include "lanes.h"

namespace FASTGRPO_ARCH {

// Of as many rows as a vector has lanes, a column at a time. Sums are double: far from the offset, the entropy is the small
// difference of two that are large.
template <typename T, bool kEntropy>
inline void exponentials_of_group(const Exponentials<T>& of, int64_t row, int count) {
  T* logits = of.logits + row;
  const Vector<T> offset = load_some(of.offsets + row, count, T(0));
  const Vector<T> scale = of.inverse_temperatures ? load_some(of.inverse_temperatures + row, count, T(1))
                                                  : broadcast(of.inverse_temperature);
  for (int i = 0; i < count; ++i) {
    const int64_t target = of.target_ids[row + i] - of.first;
    if (target >= 0 && target < of.columns)
      of.target[row + i] = double(logits[target * of.column_stride + i] * scale[i] - offset[i]);
  }
  WideSum<T> total, weighted;
  for (int64_t column = 0; column < of.columns; ++column) {
    T* place = logits + column * of.column_stride;
    const Vector<T> x = load_some(place, count, T(0)) * scale - offset;
    const Vector<T> e = exp_of(x);
    total.add(e);
    if (kEntropy) weighted.add_product(e, e == T(0) ? Vector<T>{} : x);  // not -inf * 0
    store_some(place, e, count);
  }
  total.add_to(of.total + row, count);
  if (kEntropy) weighted.add_to(of.weighted + row, count);
}

template <typename T>
void exponentials(const Exponentials<T>& of, int64_t begin, int64_t end) {
  constexpr int lanes = Lanes<T>::count;
  for (int64_t row = begin; row < end; row += lanes) {
    const int count = int(end - row < lanes ? end - row : lanes);
    if (of.weighted)
      exponentials_of_group<T, true>(of, row, count);
    else
      exponentials_of_group<T, false>(of, row, count);
  }
}

}  // namespace FASTGRPO_ARCH
