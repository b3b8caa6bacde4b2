/* What card.c, memory.c and launches.c share. */
#pragma once
#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MIB ((size_t)1 << 20)
#define SEGMENT (2 * MIB) /* a driver maps memory in pieces of this size */
#define HANDLE 4096       /* bytes of what a handle points to, which nobody looks into but us */
#define MOST_DEVICES 4
#define SOME_POINTER ((void *)8)

/* What happened, in the order of tests/fake_cuda/card.py. */

struct stats {
    long used, peak;                              /* bytes of all devices */
    long mallocs, launches, triton_launches;      /* launches: of torch and ONNX Runtime */
    long graphs, replays, to_device, to_host, syncs;
    long captured_mallocs, captured_syncs, captured_pageable; /* each a fault on a real card */
    long captured_nodes, captured_triton;         /* nodes of the last graph, those of Triton among them */
    long overwritten; /* copies whose page-locked source changed before anybody waited for them */
    long used_on[MOST_DEVICES];
};

/* Hidden, or such names would take the place of others' in every library of the process. */
#pragma GCC visibility push(hidden)

extern struct stats stats;
extern pthread_mutex_t mutex;
extern size_t total, context; /* bytes of the card, and those missing from what is free */
extern int taken_by_others;   /* whether nothing more can be had */
extern int major, minor, multiprocessors, devices, copying, cuda_version;
extern __thread int current; /* device */
extern int capture;          /* whether one is under way */
extern long copy_count;      /* copies from page-locked memory */

cudaError_t fail(cudaError_t error);
int attribute(int which);
void complete(long order);           /* wait for copies up to the order-th */
cudaError_t synchronize(long order); /* the same, as a program asks for it */

#pragma GCC visibility pop
