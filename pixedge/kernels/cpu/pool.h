/* A pool of threads that run one task together; every kernel of this library is such a task.

   A task is entered by all threads of the pool at once, the caller being thread 0. Inside it threads share
   work by pixedge_next and wait for each other by pixedge_barrier. Calls from several threads of the program
   take turns. A task must not start another one. After fork() the child starts a pool of its own. */

#ifndef PIXEDGE_POOL_H
#define PIXEDGE_POOL_H

#include <stdatomic.h>
#include <stdint.h>

#if defined(__GNUC__)
#define PIXEDGE_API __attribute__((visibility("default")))
#else
#define PIXEDGE_API
#endif

typedef void (*pixedge_task)(void *context, int thread, int threads);

/* Run task on every thread of the pool; return when all are done. */
void pixedge_parallel(pixedge_task task, void *context);

/* Inside a task: wait until all its threads have come here. What they wrote before is then seen by all. */
void pixedge_barrier(void);

/* Take the next number of a count that all threads share. Dynamic, because a core may be busy elsewhere. */
int pixedge_next(atomic_int *counter);

#define PIXEDGE_MOST_THREADS 256

/* Items that lie side by side in memory, shared so that each thread reads a long run of them; begins as zeros. */
struct pixedge_runs {
    atomic_int taken[PIXEDGE_MOST_THREADS];
};

/* Take the next of `items` items: of the thread's own run, and when that is done one of another thread's. *tried
   begins as 0 and counts the runs that are done. Return -1 when all are. */
int64_t pixedge_next_in_run(struct pixedge_runs *runs, int64_t items, int thread, int threads, int *tried);

/* Use this many threads from the next task on; 0 stands for one per available core. */
PIXEDGE_API void pixedge_set_threads(int threads);

/* How many threads the next task runs on. */
PIXEDGE_API int pixedge_threads(void);

#endif
