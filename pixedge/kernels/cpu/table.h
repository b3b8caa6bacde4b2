/* Fill in a variant's table from the functions that it has included or written. */

#define TABLE(variable, label, rounding, attention)                                                               \
    const struct kernels variable = {label,  int4_block, int8_block, rounding,   rms_norm,  gated,  rotate, \
                                     widen,  narrow,     round_head, round_query, attention, repack, \
                                     round_weights, unpack, read_words}
