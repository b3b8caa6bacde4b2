/* For any CPU. */

#include "inner_loops.h"
#include "products_plain.h"
#include "attend_plain.h"
#include "table.h"

TABLE(pixedge_plain, "c", round_row, attend);
